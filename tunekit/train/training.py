"""What a training run is made of: its parts, its schedule, and the state that must survive a restart."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tunekit.data.loader import Loader
from tunekit.models.policy import Policy
from tunekit.objectives.objective import Objective
from tunekit.train.engine import Engine
from tunekit.train.health import Health, Watch
from tunekit.train.report import MetricsFile

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
    is_divided: bool = False  # weights over processes, which then have to make as many passes
    health: Watch = field(default_factory=Health)
    state: RunState = field(default_factory=RunState)


def record(run: Training, values: dict[str, Any]) -> None:
    if run.engine.is_main:
        run.metrics.write(run.state.step, values)
        run.engine.track(values, run.state.step)
