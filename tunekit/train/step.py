"""One optimizer step: sums over micro-batches and ranks, divided once by the weight of them all.

The mean of micro-batch means is another gradient whenever micro-batches differ in trained tokens; a sum divided by the
weight of the whole step is the same for every split.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tunekit.data.batch import Batch
from tunekit.errors import Diverged
from tunekit.objectives.objective import Objective
from tunekit.ops.logprobs import answer_sums
from tunekit.train.engine import Engine, whole


@dataclass(frozen=True, slots=True)
class StepResult:
    """loss: nats a trained token, or a row;  grad_norm: before clipping;  num_tokens, trained_tokens: of all ranks;

    weight: what the loss was divided by;  metrics: those of the objective, means over the step
    """

    loss: float
    num_tokens: int
    trained_tokens: int
    weight: int
    grad_norm: float = math.nan
    metrics: dict[str, float] = field(default_factory=dict)


def backward(
    policy: nn.Module, objective: Objective, batches: Sequence[Batch], engine: Engine, idle: Sequence[Batch] = ()
) -> StepResult:
    """Leaves the gradient of the step's loss in `.grad`, on every rank.

    idle: batches that do not count, in place of those that other ranks have more: all make as many passes
    """
    sizes = [[batch.weight, batch.num_tokens, len(batch.targets)] for batch in batches]
    counts = torch.tensor(sizes, dtype=torch.int64, device=engine.device).reshape(-1, 3)
    weight, num_tokens, trained = engine.sum(counts.sum(0)).tolist()
    kl = estimate_kl(policy, batches, engine, idle=idle) if objective.needs_kl else 0.0
    loss_sum = torch.zeros((), device=engine.device)
    metrics: dict[str, Tensor] = {}
    maxima: dict[str, Tensor] = {}
    for batch, share in [*((batch, 1.0) for batch in batches), *((batch, 0.0) for batch in idle)]:
        terms = objective.terms(policy(batch), batch, kl)
        (terms.loss_sum * (share / weight)).backward()
        loss_sum += terms.loss_sum.detach() * share
        add_metrics(metrics, terms.metrics, share)
        for name, value in terms.maxima.items():
            maxima[name] = torch.maximum(
                maxima.get(name, value), value if share else torch.full_like(value, -torch.inf)
            )
    engine.sum_gradients(policy.parameters())
    means = mean_metrics(sum_metrics(metrics, engine)) | ({"kl": kl} if objective.needs_kl else {})
    means |= {name: float(engine.max(value)) for name, value in maxima.items()}
    return StepResult(float(engine.sum(loss_sum)) / weight, num_tokens, trained, weight, metrics=means)


@torch.no_grad()
def estimate_kl(
    policy: nn.Module,
    batches: Iterable[Batch],
    engine: Engine,
    poll: Callable[[], None] = lambda: None,
    idle: Iterable[Batch] = (),
) -> float:
    """KL divergence of the policy from the reference in nats a row, from answers to other prompts: at least 0.

    max(0, mean of log pi(y' | x) - log pi_ref(y' | x)) over the mismatched answers y' of the batches (Ethayarajh et al.
    2024, arXiv:2402.01306, section 4.2).
    """
    total = torch.zeros(2, dtype=torch.float64, device=engine.device)  # sum and number of log-ratios
    for share, each in ((1, batches), (0, idle)):
        for batch in each:
            poll()
            assert batch.mismatched is not None and batch.mismatched.reference is not None
            logratios = answer_sums(policy(batch.mismatched), batch.mismatched.counts) - batch.mismatched.reference
            total[0] += share * logratios.double().sum()
            total[1] += share * len(logratios)
    total = engine.sum(total)
    return max(0.0, float(total[0] / total[1]))


def add_metrics(metrics: dict[str, Tensor], more: dict[str, Tensor], share: float = 1.0) -> None:
    for name, value in more.items():
        value = value.detach() if share else torch.zeros_like(value)
        metrics[name] = metrics[name] + value if name in metrics else value


def sum_metrics(metrics: dict[str, Tensor], engine: Engine) -> dict[str, Tensor]:
    """Over ranks, which all have the same ones."""
    if engine.world_size == 1 or not metrics:
        return metrics
    names = sorted(metrics)
    return dict(zip(names, engine.sum(torch.stack([metrics[name].double() for name in names])), strict=True))


def mean_metrics(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Sum over number; a metric of which there was nothing is left out."""
    return {name: float(value[0] / value[1]) for name, value in metrics.items() if value[1] > 0}


def update(
    result: StepResult, parameters: Sequence[nn.Parameter], optimizer: Optimizer, max_grad_norm: float
) -> StepResult:
    """Clips and steps. Raises `Diverged`, the weights untouched, if the loss or the gradient norm is not finite."""
    grad_norm = float(whole(nn.utils.clip_grad_norm_(parameters, max_grad_norm)))
    if not (math.isfinite(result.loss) and math.isfinite(grad_norm)):
        raise Diverged(
            f"loss {result.loss}, gradient norm {grad_norm}: not finite; the update was not made",
            "Lower train.learning_rate, lengthen the warm-up, or look for broken rows in the data of this step.",
        )
    optimizer.step()
    optimizer.zero_grad()
    return replace(result, grad_norm=grad_norm)
