"""Measures on held-out rows: loss and perplexity always, metrics of generated text where the recipe asks."""

import math
from collections.abc import Callable, Sequence

import torch

from tunekit.data.rows import Tokens
from tunekit.models.policy import Policy


@torch.no_grad()
def held_out_loss(
    policy: Policy, rows: Sequence[Tokens], batch_size: int, poll: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """`eval_loss`, nats a trained token over all of `rows`, and `eval_perplexity`, its exponential.

    Rows of similar length share a batch; the sum is divided once, so that the batch size does not change the result.
    `poll` is called before each batch. The policy is left in evaluation mode.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    policy.eval()
    total, weight = 0.0, 0
    for start in range(0, len(order), batch_size):
        poll()
        batch = policy.batch([rows[i] for i in order[start : start + batch_size]])
        total -= float(policy(batch).double().sum())
        weight += batch.weight
    loss = total / weight
    return {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700.0))}
