"""Objectives over pairs of answers: a recipe's losses as sums over a batch, and what is watched while training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tunekit.data.batch import Batch
from tunekit.errors import RecipeError
from tunekit.objectives.objective import Objective, Terms, total
from tunekit.objectives.pair_losses import PairLogprobs, PairLoss, nll
from tunekit.ops.logprobs import answer_sums

ROUNDING = 1e-6  # of sums in fp32, relative


@dataclass(frozen=True)
class Weighted:
    """A loss of a recipe: its share of the whole and its parameters."""

    loss: PairLoss
    weight: float = 1.0
    parameters: Mapping[str, float] = field(default_factory=dict)


def loss_of(losses: Sequence[Weighted], sft_weight: float) -> Callable[[PairLogprobs], Tensor]:
    """The weighted sum of `losses` and of the negative log-likelihood of the chosen answers, `(P,)`."""

    def loss(pairs: PairLogprobs) -> Tensor:
        terms = [each.weight * _checked(each.loss.function(pairs, **each.parameters), pairs) for each in losses]
        return torch.stack([*terms, *([sft_weight * nll(pairs)] if sft_weight else [])]).sum(0)

    return loss


def _checked(loss: object, pairs: PairLogprobs) -> Tensor:
    """The loss of each pair. Raises `RecipeError` where a function of the user's own gives something else."""
    if not isinstance(loss, Tensor) or loss.shape != pairs.chosen.shape:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise RecipeError(f"objective.loss: a function gave {found} for {len(pairs.chosen)} pairs; one number for each")
    return loss


def preference(losses: Sequence[Weighted], sft_weight: float) -> Objective:
    """The objective of `losses`. What is watched has the scale and, as rewards, the meaning of the first one.

    A reward is beta times the log-ratio to the reference, or the log-probability where no loss has a reference.
    """
    first, needs_reference = losses[0].loss, any(each.loss.needs_reference for each in losses)
    beta = losses[0].parameters.get("beta", 1.0)
    loss = loss_of(losses, sft_weight)

    def terms(logprobs: Tensor, batch: Batch, kl: float) -> Terms:
        pairs = pair_logprobs(logprobs, batch)
        metrics = watched(pairs, beta, per_token=first.per_token) | (_distance(pairs) if needs_reference else {})
        return Terms(loss(pairs).sum(), metrics)

    return Objective(terms, needs_reference=needs_reference)


def pair_logprobs(logprobs: Tensor, batch: Batch) -> PairLogprobs:
    """`logprobs (N,)` of the tokens of a batch of pairs, summed over each answer."""
    sums = answer_sums(logprobs, batch.counts)
    reference = torch.zeros_like(sums) if batch.reference is None else batch.reference.to(sums.dtype)
    lengths = batch.counts.to(sums.dtype)
    return PairLogprobs(sums[::2], sums[1::2], reference[::2], reference[1::2], lengths[::2], lengths[1::2])


@torch.no_grad()
def watched(pairs: PairLogprobs, beta: float, *, per_token: bool) -> dict[str, Tensor]:
    """Rewards, log-probabilities (nats) and lengths of the answers; accuracy is the share of pairs with margin > 0.

    A margin that is 0 up to rounding, as all are before step 1, counts half.
    """
    rewards = [beta * pairs.chosen_logratio, beta * pairs.rejected_logratio]
    if per_token:
        rewards = [rewards[0] / pairs.chosen_length, rewards[1] / pairs.rejected_length]
    margin = rewards[0] - rewards[1]
    rounding = ROUNDING * (100 + pairs.chosen.abs() + pairs.rejected.abs())
    return {
        "accuracy": total(torch.where(pairs.margin.abs() < rounding, 0.5, (margin > 0).to(margin.dtype))),
        "margin": total(margin),
        "reward_chosen": total(rewards[0]),
        "reward_rejected": total(rewards[1]),
        "logps_chosen": total(pairs.chosen),
        "logps_rejected": total(pairs.rejected),
        "length_chosen": total(pairs.chosen_length),
        "length_rejected": total(pairs.rejected_length),
    }


@torch.no_grad()
def _distance(pairs: PairLogprobs) -> dict[str, Tensor]:
    """`kl`: k2 of Schulman 2020 (r^2 / 2) at the mean log-ratio r a token, over the answers of the data.

    0 where policy and reference agree; the answers are those of the data and not the policy's own, so that it is a
    distance and no estimate of the divergence on what the policy would write.
    """
    chosen = pairs.chosen_logratio / pairs.chosen_length
    ratios = torch.cat([chosen, pairs.rejected_logratio / pairs.rejected_length])
    return {"kl": total(ratios**2 / 2)}
