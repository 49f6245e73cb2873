"""What the loop asks of an objective: sums over a batch, to be divided once over the whole step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tunekit.data.batch import Batch


class Terms(NamedTuple):
    """loss_sum: over the batch, unreduced;  metrics: of each name the sum and the number `(2,)` whose ratio it is;

    maxima: of each name the largest value `()`.
    """

    loss_sum: Tensor
    metrics: dict[str, Tensor]
    maxima: dict[str, Tensor] = {}  # noqa: RUF012  never changed


@dataclass(frozen=True)
class Objective:
    """terms: (what the policy gives for a batch, the batch, the KL divergence to the reference) -> sums over the batch.

    The KL divergence, nats a row, is estimated over the whole step from the mismatched answers of its batches, before
    any gradient, if `needs_kl`; else it is 0.
    """

    terms: Callable[[Tensor, Batch, float], Terms]
    needs_kl: bool = False
    needs_reference: bool = False


def total(values: Tensor) -> Tensor:
    """Sum and number `(2,)` of `values (R,)`, from which a mean over several batches is made."""
    values = values.detach().double()
    return torch.stack([values.sum(), torch.ones_like(values).sum()])
