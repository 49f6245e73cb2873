"""The one training loop. It only sequences: steps of the plan, evaluation and checkpoints when due, signals between.

    for step in plan: backward -> update -> log -> [evaluate] -> [save] -> [stop?]

A stage hands in its policy, objective and evaluation; the loop knows none of them.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import nn
from torch.optim import Optimizer

from tunekit.data.batch import Batch
from tunekit.data.rows import Example
from tunekit.errors import Diverged, MemoryExceeded
from tunekit.train.engine import whole
from tunekit.train.folder import out_of_memory
from tunekit.train.report import ProgressLine
from tunekit.train.rng import rng_state, set_rng_state
from tunekit.train.saving import save
from tunekit.train.signals import StopRequest
from tunekit.train.step import backward, update
from tunekit.train.training import Training, record

log = logging.getLogger("tunekit")


class _Abandoned(Exception):
    """An evaluation was cut short by a signal."""


def train(run: Training, stop: StopRequest) -> None:
    """Runs to the end of the plan or to early stopping, from `run.state.step`.

    Raises `Diverged` before a non-finite update, `Preempted`/`Interrupted` after saving, `StorageError`.
    """
    state, num_steps, alone = run.state, run.loader.num_steps, run.engine.world_size == 1

    def poll() -> None:
        if alone and stop.received is not None:  # else all stop together, once they have come to the end of a step
            save(run, required=True)
            raise stop.error(f"step {state.step} was the last and is saved; continue with resume=auto")

    shown = run.engine.is_main
    with stop.deferred(), ProgressLine(num_steps, state.step, run.schedule.logging_steps, shown) as progress:
        if state.evaluation_due:
            _finish_step(run, stop)
        if state.stopped_early:
            return
        started = time.perf_counter()
        for step, micro_batches, epoch, ends_epoch, gauges in run.loader.steps(state.step, poll):
            run.policy.train()  # whatever came before this step (evaluation, generation) left it in evaluation mode
            batches, idle = _batches(run, micro_batches)
            result = backward(run.policy, run.objective, batches, run.engine, idle)
            lr = run.learning_rate.get_last_lr()[0]
            result = update(result, list(run.parameters.values()), run.optimizer, run.max_grad_norm)
            run.learning_rate.step()
            seconds = time.perf_counter() - started
            state.step = step
            state.num_tokens += result.num_tokens
            state.num_trained_tokens += result.trained_tokens
            _count_parts(run, micro_batches)
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
        norm = nn.utils.get_total_norm([p.grad for p in run.parameters.values() if p.grad is not None])
        if torch.isfinite(whole(norm)):
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


def _batches(run: Training, micro_batches: Sequence[Sequence[Example]]) -> tuple[list[Batch], list[Batch]]:
    """This rank's batches, and those without weight with which it makes as many passes as the others.

    One pass at least, so that all have the same metrics; as many as any where weights are divided.
    """
    batches = [run.policy.batch(rows) for rows in micro_batches]
    if run.engine.world_size == 1:
        return batches, []
    missing = (run.engine.largest(len(batches)) if run.is_divided else 1) - len(batches)
    if missing <= 0:
        return batches, []
    return batches, [run.policy.batch(run.loader.longest(padded=not run.policy.flat)[:1])] * missing


def _count_parts(run: Training, micro_batches: Sequence[Sequence[Example]]) -> None:
    counts = run.state.trained_by_part
    own: Counter[int] = Counter()
    for row in (row for rows in micro_batches for row in rows):
        own[row.part] += sum(int(answer.trained.sum()) for answer in row.answers)
    for part, count in (item for each in run.engine.gather(own) for item in each.items()):
        counts += [0] * (part + 1 - len(counts))
        counts[part] += count


def _finish_step(run: Training, stop: StopRequest) -> None:
    """What comes after an update: evaluate if due, save if due, and leave if a signal asks for it (of any rank)."""
    state = run.state
    best_before = state.best_metric, state.best_step
    _agree(run, stop)
    improved = _evaluate(run, stop) if state.evaluation_due and stop.received is None else False
    _agree(run, stop)
    last = state.step == run.loader.num_steps or state.stopped_early
    stopping = stop.received is not None
    if improved or last or stopping or state.step % run.schedule.save_steps == 0:
        saved = save(run, required=last or stopping)
        if improved and not saved:  # the best model must be one that can be loaded again
            state.best_metric, state.best_step = best_before
    if stopping and not (last and not state.evaluation_due):
        raise stop.error(f"step {state.step} was finished and saved; continue with resume=auto")


def _agree(run: Training, stop: StopRequest) -> None:
    if found := run.engine.largest(stop.received or 0):  # and never None: a signal may have come while it was asked
        stop.received = found


def _evaluate(run: Training, stop: StopRequest) -> bool:
    """Held-out metrics into the run's state; True if they are the best so far. A signal leaves the evaluation due.

    Raises `Diverged` for a held-out loss that is not finite: the last update was the one that broke the model.
    """

    def poll() -> None:
        _agree(run, stop)
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
