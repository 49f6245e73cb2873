"""Measures on held-out rows: the objective's loss and metrics."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tunekit.data.rows import Example
from tunekit.models.policy import Policy
from tunekit.objectives.objective import Objective
from tunekit.train.step import add_metrics, estimate_kl, mean_metrics


@torch.no_grad()
def held_out_loss(
    policy: Policy,
    objective: Objective,
    rows: Sequence[Example],
    batch_size: int,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """`eval_loss`, nats a trained token or a row, over all of `rows`, and `eval_NAME` of each metric of the objective.

    Rows of similar length share a batch; sums are divided once, so that the batch size does not change the result.
    `poll` is called before each batch. The policy is left in evaluation mode.
    """
    order = sorted(range(len(rows)), key=lambda i: sum(len(answer.ids) for answer in rows[i].answers))
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    policy.eval()
    kl = 0.0
    if objective.needs_kl:
        kl = estimate_kl(policy, (policy.batch([rows[i] for i in chunk]) for chunk in chunks), poll=poll)
    total, weight = 0.0, 0
    metrics: dict[str, Tensor] = {}
    for chunk in chunks:
        poll()
        batch = policy.batch([rows[i] for i in chunk])
        terms = objective.terms(policy(batch).double(), batch, kl)
        total += float(terms.loss_sum)
        weight += batch.weight
        add_metrics(metrics, terms.metrics)
    values = mean_metrics(metrics) | ({"kl": kl} if objective.needs_kl else {})
    return {"eval_loss": total / weight, **{f"eval_{name}": value for name, value in values.items()}}
