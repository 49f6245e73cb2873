"""The one training loop. It only sequences: steps of the plan, evaluation and checkpoints when due, signals between.

    for step in plan: backward -> update -> log -> [evaluate] -> [save] -> [stop?]

A stage hands in its policy, objective and evaluation; the loop knows none of them.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tunekit.data.loader import Loader
from tunekit.data.rows import Example
from tunekit.errors import Diverged, MemoryExceeded, StorageError
from tunekit.models.policy import Policy
from tunekit.objectives.objective import Objective
from tunekit.train import checkpoint
from tunekit.train.engine import Engine
from tunekit.train.folder import out_of_memory
from tunekit.train.health import Health, Watch
from tunekit.train.report import MetricsFile, ProgressLine
from tunekit.train.rng import rng_state, set_rng_state
from tunekit.train.signals import StopRequest
from tunekit.train.step import backward, update

log = logging.getLogger("tunekit")

Evaluate = Callable[[Callable[[], None]], dict[str, float]]  # takes a function to poll; returns held-out metrics


@dataclass(frozen=True)
class Schedule:
    """When the loop does what besides training. `eval_steps` None evaluates at the end of each epoch."""

    save_steps: int
    total_limit: int
    eval_steps: int | None
    metric_for_best_model: str
    greater_is_better: bool
    early_stopping_patience: int | None
    logging_steps: int

    def evaluation_due(self, step: int, ends_epoch: bool, num_steps: int) -> bool:
        return step == num_steps or (ends_epoch if self.eval_steps is None else step % self.eval_steps == 0)


@dataclass
class RunState:
    """Everything about a run that is neither a weight nor the optimizer's, and must survive a restart."""

    step: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    trained_by_part: list[int] = field(default_factory=list)  # trained tokens of each source of data.train
    seconds: float = 0.0
    before: dict[str, Any] = field(default_factory=dict)  # what was measured before step 1
    evaluation_due: bool = False  # true in a checkpoint whose evaluation was cut short by a signal
    evaluated: dict[str, float] = field(default_factory=dict)
    best_metric: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    stopped_early: bool = False


@dataclass
class Training:
    """The parts of a run. `parameters` are the trained ones by name; `contract` is what a resumed run must keep."""

    policy: Policy
    objective: Objective
    loader: Loader
    parameters: dict[str, nn.Parameter]
    optimizer: Optimizer
    learning_rate: LRScheduler
    max_grad_norm: float
    engine: Engine
    evaluate: Evaluate
    schedule: Schedule
    metrics: MetricsFile
    checkpoints: Path
    contract: dict[str, Any]
    health: Watch = field(default_factory=Health)
    state: RunState = field(default_factory=RunState)


class _Abandoned(Exception):
    """An evaluation was cut short by a signal."""


def train(run: Training, stop: StopRequest) -> None:
    """Runs to the end of the plan or to early stopping, from `run.state.step`.

    Raises `Diverged` before a non-finite update, `Preempted`/`Interrupted` after saving, `StorageError`.
    """
    module = run.engine.prepare(run.policy)
    state, num_steps = run.state, run.loader.num_steps

    def poll() -> None:
        if stop.received is not None:
            save(run, required=True)
            raise stop.error(f"step {state.step} was the last and is saved; continue with resume=auto")

    with stop.deferred(), ProgressLine(num_steps, state.step, run.schedule.logging_steps) as progress:
        if state.evaluation_due:
            _finish_step(run, stop)
        if state.stopped_early:
            return
        started = time.perf_counter()
        for step, micro_batches, epoch, ends_epoch, gauges in run.loader.steps(state.step, poll):
            run.policy.train()  # whatever came before this step (evaluation, generation) left it in evaluation mode
            batches = [run.policy.batch(rows) for rows in micro_batches]
            result = backward(module, run.objective, batches, run.engine)
            lr = run.learning_rate.get_last_lr()[0]
            result = update(result, list(run.parameters.values()), run.optimizer, run.max_grad_norm)
            run.learning_rate.step()
            seconds = time.perf_counter() - started
            state.step = step
            state.num_tokens += result.num_tokens
            state.num_trained_tokens += result.trained_tokens
            _count_parts(state, micro_batches)
            state.seconds += seconds
            state.evaluation_due = run.schedule.evaluation_due(step, ends_epoch, num_steps)
            values = asdict(result)
            values |= values.pop("metrics")
            values |= {**gauges, "lr": lr, "epoch": epoch, "seconds": seconds, "tokens": state.num_tokens}
            record(run, values)
            for warning in run.health.look(step, result.metrics | gauges):
                log.warning("step %d: %s", step, warning)
            progress.advance(step, {"loss": result.loss, **gauges}, result.num_tokens, seconds)
            _finish_step(run, stop)
            if state.stopped_early:
                break
            started = time.perf_counter()


def try_longest_batch(run: Training, spare: Optimizer) -> None:
    """Runs the micro-batch with the most tokens through forward, backward and an update of size zero, leaving no trace.

    `spare` is an optimizer like the run's with learning rate 0: its states take the memory that the real one will.
    Raises `MemoryExceeded` where that does not fit.
    """
    state = rng_state()
    run.policy.train()
    rows = run.loader.longest(padded=not run.policy.flat)
    num_tokens = sum(len(answer.ids) for row in rows for answer in row.answers)
    try:
        backward(run.policy, run.objective, [run.policy.batch(rows)], run.engine)
        if torch.isfinite(nn.utils.get_total_norm([p.grad for p in run.parameters.values() if p.grad is not None])):
            spare.step()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise MemoryExceeded(
            f"the longest batch ({len(rows)} rows, {num_tokens} tokens) does not fit into memory",
            "Lower train.per_device_train_batch_size (raise gradient_accumulation_steps to make up for it) or "
            "data.max_length, or set train.activation_checkpointing: true.",
        ) from error
    spare.zero_grad()
    set_rng_state(state)
    log.info("longest batch tried: %d rows, %d tokens", len(rows), num_tokens)


def _count_parts(state: RunState, micro_batches: Sequence[Sequence[Example]]) -> None:
    for row in (row for rows in micro_batches for row in rows):
        state.trained_by_part += [0] * (row.part + 1 - len(state.trained_by_part))
        state.trained_by_part[row.part] += sum(int(answer.trained.sum()) for answer in row.answers)


def record(run: Training, values: dict[str, Any]) -> None:
    run.metrics.write(run.state.step, values)
    run.engine.track(values, run.state.step)


def _finish_step(run: Training, stop: StopRequest) -> None:
    """What comes after an update: evaluate if due, save if due, and leave if a signal asks for it."""
    state = run.state
    best_before = state.best_metric, state.best_step
    improved = _evaluate(run, stop) if state.evaluation_due and stop.received is None else False
    last = state.step == run.loader.num_steps or state.stopped_early
    stopping = stop.received is not None
    if improved or last or stopping or state.step % run.schedule.save_steps == 0:
        saved = save(run, required=last or stopping)
        if improved and not saved:  # the best model must be one that can be loaded again
            state.best_metric, state.best_step = best_before
    if stopping and not (last and not state.evaluation_due):
        raise stop.error(f"step {state.step} was finished and saved; continue with resume=auto")


def _evaluate(run: Training, stop: StopRequest) -> bool:
    """Held-out metrics into the run's state; True if they are the best so far. A signal leaves the evaluation due.

    Raises `Diverged` for a held-out loss that is not finite: the last update was the one that broke the model.
    """

    def poll() -> None:
        if stop.received is not None:
            raise _Abandoned

    try:
        values = run.evaluate(poll)
    except _Abandoned:
        return False
    state, schedule = run.state, run.schedule
    state.evaluation_due, state.evaluated = False, values
    if not values:
        return False
    if not math.isfinite(loss := values.get("eval_loss", 0.0)):
        raise Diverged(f"step {state.step}: held-out loss {loss}: not finite", "Lower train.learning_rate.")
    record(run, values)
    log.info("step %d  %s", state.step, "  ".join(f"{name} {value:.4f}" for name, value in values.items()))
    metric = values.get(schedule.metric_for_best_model)
    if metric is None:  # only tasks were measured: nothing says which step is best
        return False
    sign = 1 if schedule.greater_is_better else -1
    if state.best_metric is None or sign * metric > sign * state.best_metric:
        state.best_metric, state.best_step, state.evaluations_without_gain = metric, state.step, 0
        return True
    state.evaluations_without_gain += 1
    if schedule.early_stopping_patience is not None:
        state.stopped_early = state.evaluations_without_gain >= schedule.early_stopping_patience
    return False


def save(run: Training, required: bool) -> bool:
    """Writes a checkpoint of everything the next step depends on, then removes the oldest ones; False if it could not.

    A full disk costs a checkpoint, not the run: unless `required`, the failure is said aloud and training goes on.
    Weights that are not finite are never saved: `Diverged`.
    """
    for name, parameter in run.parameters.items():
        if not bool(torch.isfinite(parameter).all()):
            raise Diverged(f"step {run.state.step}: {name} is not finite", "Lower train.learning_rate.")
    tree = {
        "parameters": dict(run.parameters),
        "optimizer": run.optimizer.state_dict(),
        "learning_rate": run.learning_rate.state_dict(),
        "rng": rng_state(),
        "data": run.loader.state_dict(),
        "run": asdict(run.state),
    }
    try:
        checkpoint.save(run.checkpoints, run.state.step, tree, run.contract)
    except StorageError as error:
        if required:
            raise
        log.warning("the checkpoint of step %d was not saved: %s", run.state.step, error)
        return False
    checkpoint.rotate(
        run.checkpoints,
        step=run.state.step,
        total_limit=run.schedule.total_limit,
        best_step=run.state.best_step,
    )
    return True


def restore(run: Training, path: Path) -> None:
    """Puts `run` back to the checkpoint `path`. Raises `StorageError` unless its weights are exactly those trained."""
    saved = checkpoint.load(path)
    load_parameters(run.parameters, saved["parameters"], path)
    run.optimizer.load_state_dict(saved["optimizer"])
    run.learning_rate.load_state_dict(saved["learning_rate"])
    set_rng_state(saved["rng"])
    run.loader.load_state_dict(saved["data"])
    run.state = RunState(**saved["run"])


def load_parameters(parameters: dict[str, nn.Parameter], saved: dict[str, Any], path: Path) -> None:
    odd = sorted(saved.keys() ^ parameters.keys())
    if odd:
        raise StorageError(f"{path}: its weights are not those of this model; the first that differs: {odd[0]}")
    for name, parameter in parameters.items():
        parameter.data.copy_(saved[name])
