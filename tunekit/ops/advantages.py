"""Advantages: how much better an answer, or a token of it, was than what was to be expected.

Axes: S answers, L tokens of the longest of them, P prompts, G answers to each.
"""

import torch
from torch import Tensor

EPSILON = 1e-4  # beside a standard deviation of rewards, as in TRL


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates `(S, L)` of rewards and values `(S, L)`; `mask` is true on the tokens of answers.

    A_t = delta_t + gamma lam A_{t+1} with delta_t = r_t + gamma V_{t+1} - V_t; after the last token all is 0 (Schulman
    et al. 2016, arXiv:1506.02438, equations 10 to 16). Tokens of an answer are its first columns.
    """
    rewards, values = rewards * mask, values * mask
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    delta = rewards + gamma * after - values
    advantages = torch.zeros_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        running = (delta[:, t] + gamma * lam * running) * mask[:, t]
        advantages[:, t] = running
    return advantages


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """`values` scaled to variance 1 over where `mask` is true, and to mean 0 unless `shift_mean` is false."""
    chosen = values[mask]
    mean = chosen.mean()
    spread = chosen.var() if len(chosen) > 1 else torch.zeros_like(mean)
    scaled = (values - mean) * torch.rsqrt(spread + 1e-8)
    return (scaled if shift_mean else scaled + mean) * mask


def group_advantages(rewards: Tensor, *, scale: str) -> Tensor:
    """Reward less the mean of its group, `(P, G)` of rewards `(P, G)`; NaN marks answers that do not count.

    scale: divide by the standard deviation of the group (Shao et al. 2024, arXiv:2402.03300, section 4.1.2), of the
    batch (Hu et al. 2025, arXiv:2501.03262), or by none (Liu et al. 2025, arXiv:2503.20783, equation 3)
    """
    advantages = rewards - rewards.nanmean(1, keepdim=True)
    if scale == "group":
        advantages = advantages / (_nanstd(rewards, 1)[:, None] + EPSILON)
    elif scale == "batch":
        advantages = advantages / (_nanstd(rewards.reshape(1, -1), 1) + EPSILON)
    return advantages.nan_to_num(0.0)


def leave_one_out(rewards: Tensor, *, normalize: bool) -> Tensor:
    """Reward less the mean of the others of its group, `(P, G)`; NaN marks answers that do not count.

    Kool et al. 2019; Ahmadian et al. 2024 (arXiv:2402.14740, equation 8). An answer without others counts for nothing.
    `normalize`: to mean 0 and variance 1 over all that count.
    """
    count = (~rewards.isnan()).sum(1, keepdim=True)
    others = (rewards.nansum(1, keepdim=True) - rewards) / (count - 1).clamp(min=1)
    advantages = torch.where(count > 1, rewards - others, torch.nan)
    if normalize:
        advantages = (advantages - advantages.nanmean()) / (_nanstd(advantages.reshape(1, -1), 1) + EPSILON)
    return advantages.nan_to_num(0.0)


def _nanstd(values: Tensor, dim: int) -> Tensor:
    """The unbiased standard deviation of what is not NaN; 0 of a single value."""
    centred = values - values.nanmean(dim, keepdim=True)
    count = (~values.isnan()).sum(dim)
    return (centred.square().nansum(dim) / (count - 1).clamp(min=1)).sqrt()
