"""One optimizer step: sums over micro-batches and ranks, divided once by the weight of them all.

The mean of micro-batch means is another gradient whenever micro-batches differ in trained tokens; a sum divided by the
weight of the whole step is the same for every split.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tunekit.data.batch import Batch
from tunekit.errors import Diverged
from tunekit.train.engine import Engine

Objective = Callable[[Tensor], Tensor]  # log-probabilities of a batch's trained tokens -> unreduced loss


@dataclass(frozen=True, slots=True)
class StepResult:
    """loss: nats a trained token;  grad_norm: before clipping;  num_tokens, weight (trained tokens): of all ranks."""

    loss: float
    num_tokens: int
    weight: int
    grad_norm: float = math.nan


def backward(policy: nn.Module, objective: Objective, batches: Sequence[Batch], engine: Engine) -> StepResult:
    """Leaves the gradient of the step's loss in `.grad`."""
    counts = torch.tensor([[batch.weight, batch.num_tokens] for batch in batches], device=engine.device).reshape(-1, 2)
    weight, num_tokens = engine.sum(counts.sum(0)).tolist()
    loss_sum = torch.zeros((), device=engine.device)
    for batch in batches:
        term = objective(policy(batch))
        (term * (engine.world_size / weight)).backward()  # the mean that data parallelism takes becomes a sum again
        loss_sum += term.detach()
    return StepResult(float(engine.sum(loss_sum)) / weight, num_tokens, weight)


def update(
    result: StepResult, parameters: Sequence[nn.Parameter], optimizer: Optimizer, max_grad_norm: float
) -> StepResult:
    """Clips and steps. Raises `Diverged`, the weights untouched, if the loss or the gradient norm is not finite."""
    grad_norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not (math.isfinite(result.loss) and math.isfinite(grad_norm)):
        raise Diverged(
            f"loss {result.loss}, gradient norm {grad_norm}: not finite; the update was not made",
            "Lower train.learning_rate, lengthen the warm-up, or look for broken rows in the data of this step.",
        )
    optimizer.step()
    optimizer.zero_grad()
    return replace(result, grad_norm=grad_norm)
