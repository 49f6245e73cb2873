"""Reward models: the probability that one answer is preferred to another."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tunekit.data.batch import Batch
from tunekit.objectives.objective import Objective, Terms, total


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor, *, center_rewards_coefficient: float | None
) -> Tensor:
    """-log sigma(r_w - r_l - m) + c (r_w + r_l)^2 of rewards `(P,)`: `(P,)`.

    Bradley and Terry 1952, as in Ouyang et al. 2022 (arXiv:2203.02155, equation 1); the margin m is that of Touvron et
    al. 2023 (arXiv:2307.09288, equation 2), the centring, which makes rewards comparable between prompts, that of
    Eisenstein et al. 2023 (arXiv:2312.09244, equation 2).
    """
    loss = -F.logsigmoid(chosen - rejected - margin)
    return loss + center_rewards_coefficient * (chosen + rejected) ** 2 if center_rewards_coefficient else loss


def reward(*, center_rewards_coefficient: float | None) -> Objective:
    """The objective of a model that gives each answer a reward."""

    def terms(rewards: Tensor, batch: Batch, kl: float) -> Terms:
        chosen, rejected = rewards[::2], rewards[1::2]
        assert batch.margins is not None
        loss = bradley_terry(
            chosen, rejected, batch.margins.to(rewards.dtype), center_rewards_coefficient=center_rewards_coefficient
        )
        return Terms(loss.sum(), _watched(chosen, rejected))

    return Objective(terms)


@torch.no_grad()
def _watched(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    margin = chosen - rejected
    return {
        "accuracy": total((margin > 0).to(margin.dtype)),
        "margin": total(margin),
        "reward_chosen": total(chosen),
        "reward_rejected": total(rejected),
    }
