"""Objectives over single answers that are wanted or not."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tunekit.data.batch import Batch
from tunekit.objectives.objective import Objective, Terms, total
from tunekit.ops.logprobs import answer_sums


def kto(
    logratio: Tensor, label: Tensor, kl: float, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """KTO (Ethayarajh et al. 2024, arXiv:2402.01306, equations 7 and 8): `(B,)` from log-ratios and labels `(B,)`.

    lambda (1 - sigma(beta (log-ratio - z_0))) for a wanted answer, lambda (1 - sigma(beta (z_0 - log-ratio))) for one
    that is not; z_0 is `kl`, the KL divergence to the reference in nats, through which no gradient flows.
    """
    sign = torch.where(label, 1.0, -1.0)
    weight = torch.where(label, desirable_weight, undesirable_weight)
    return weight * (1 - (sign * beta * (logratio - kl)).sigmoid())


def apo_zero_unpaired(
    logratio: Tensor, label: Tensor, kl: float, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """APO-zero for single answers (D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7): KTO's loss at z_0 = 0."""
    return kto(
        logratio, label, 0.0, beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight
    )


UNPAIRED_LOSSES: dict[str, Callable[..., Tensor]] = {"kto": kto, "apo_zero_unpaired": apo_zero_unpaired}


def unpaired(name: str, *, beta: float, **weights: float) -> Objective:
    """The objective of labelled answers by the loss `name`."""

    def terms(logprobs: Tensor, batch: Batch, kl: float) -> Terms:
        assert batch.reference is not None and batch.labels is not None
        sums = answer_sums(logprobs, batch.counts)
        logratio = sums - batch.reference.to(sums.dtype)
        loss = UNPAIRED_LOSSES[name](logratio, batch.labels, kl, beta=beta, **weights)
        watched = {"reward": beta * logratio, "logps": sums, "length": batch.counts}
        return Terms(loss.sum(), _watched(watched, batch.labels))

    return Objective(terms, needs_kl=name == "kto", needs_reference=True)


@torch.no_grad()
def _watched(values: Mapping[str, Tensor], label: Tensor) -> dict[str, Tensor]:
    """Of each of `values` (rewards, log-probabilities in nats, tokens) that of wanted answers (`chosen`) and others."""
    sides = {"chosen": label, "rejected": ~label}
    return {f"{name}_{side}": total(each[which]) for name, each in values.items() for side, which in sides.items()}
