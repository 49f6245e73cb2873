"""Measures on held-out rows: the objective's loss and metrics."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tunekit.data.batch import Batch
from tunekit.data.rows import Example
from tunekit.models.policy import Policy
from tunekit.objectives.objective import Objective
from tunekit.train.engine import Engine
from tunekit.train.step import add_metrics, estimate_kl, mean_metrics, sum_metrics


@torch.no_grad()
def held_out_loss(
    policy: Policy,
    objective: Objective,
    rows: Sequence[Example],
    batch_size: int,
    poll: Callable[[], None] = lambda: None,
    engine: Engine | None = None,
) -> dict[str, float]:
    """`eval_loss`, nats a trained token or a row, over all of `rows`, and `eval_NAME` of each metric of the objective.

    Rows of similar length share a batch; sums are divided once, so that the batch size does not change the result.
    `poll` is called before each batch, as often on each rank of `engine`, which share the rows. The policy is left in
    evaluation mode.
    """
    engine = engine or Engine()
    order = sorted(range(len(rows)), key=lambda i: sum(len(answer.ids) for answer in rows[i].answers))
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    policy.eval()
    mine = chunks[engine.rank :: engine.world_size]
    idle = chunks[: -(-len(chunks) // engine.world_size) - len(mine)]  # all make as many passes

    def batches(parts: list[list[int]]) -> Iterator[Batch]:
        return (policy.batch([rows[i] for i in chunk]) for chunk in parts)

    kl = estimate_kl(policy, batches(mine), engine, poll, batches(idle)) if objective.needs_kl else 0.0
    total = torch.zeros(2, dtype=torch.float64, device=engine.device)  # of losses, and their weight
    metrics: dict[str, Tensor] = {}
    for share, parts in ((1, mine), (0, idle)):
        for batch in batches(parts):
            poll()
            terms = objective.terms(policy(batch).double(), batch, kl)
            total[0] += share * terms.loss_sum
            total[1] += share * batch.weight
            add_metrics(metrics, terms.metrics, share)
    total = engine.sum(total)
    values = mean_metrics(sum_metrics(metrics, engine)) | ({"kl": kl} if objective.needs_kl else {})
    return {"eval_loss": float(total[0] / total[1]), **{f"eval_{name}": value for name, value in values.items()}}
