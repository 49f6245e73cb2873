"""How the rewards of a rollout become advantages of tokens: the part in which PPO, GRPO and RLOO differ.

Axes: S answers, P prompts, G answers to each, T tokens of an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tunekit.data.rows import Sampled
from tunekit.ops.advantages import gae, group_advantages, leave_one_out, whiten
from tunekit.ops.divergence import kl_estimate
from tunekit.rollout.gauges import explained_variance
from tunekit.rollout.padding import padded

Assigned = tuple[list[Sampled], dict[str, float]]


class Method(Protocol):
    """`assign`: rows and rewards `(P, G)` (NaN: failed) -> rows with advantages, and gauges."""

    def assign(self, rows: Sequence[Sampled], rewards: Tensor) -> Assigned: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Stateless:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


@dataclass
class Grouped(_Stateless):
    """GRPO and its variants: an answer is compared with the others to its prompt."""

    scale: str
    by_tokens: bool  # the weight of an answer is its tokens

    def assign(self, rows: Sequence[Sampled], rewards: Tensor) -> Assigned:
        advantages = group_advantages(rewards, scale=self.scale)
        gauges = _group_gauges(rewards) | {"advantage_std": float(advantages.std())}
        return _spread(rows, advantages, self.by_tokens), gauges


@dataclass
class LeaveOneOut(_Stateless):
    """RLOO: the divergence from the reference, k1 summed over the answer, is taken off its reward (`beta` a nat)."""

    beta: float
    normalize: bool

    def assign(self, rows: Sequence[Sampled], rewards: Tensor) -> Assigned:
        gauges = _group_gauges(rewards)
        if self.beta:
            ratios = [(row.old - row.reference).sum() for row in rows]  # type: ignore[operator]
            rewards = rewards - self.beta * torch.tensor(np.array(ratios), dtype=rewards.dtype).view_as(rewards)
        advantages = leave_one_out(rewards, normalize=self.normalize)
        return _spread(rows, advantages, False), gauges | {"advantage_std": float(advantages.std())}


@dataclass
class Generalised:
    """PPO: -kl_coef x divergence at each token, the reward at the last one, generalised advantages, whitened.

    kl_target: nats an answer that `kl_coef` is adapted to, proportionally and over `kl_horizon` answers (Ziegler et al.
    2019, arXiv:1909.08593, section 2.2); None: it stays.
    """

    kl_coef: float
    estimator: str
    gamma: float
    lam: float
    whiten_rewards: bool
    kl_target: float | None = None
    kl_horizon: int = 10_000

    def assign(self, rows: Sequence[Sampled], rewards: Tensor) -> Assigned:
        counted = ~rewards.flatten().isnan()
        values, mask = padded([row.values for row in rows])  # type: ignore[misc]
        per_token, divergence = torch.zeros_like(values), None
        if rows[0].reference is not None:
            old, reference = (padded([getattr(row, name) for row in rows])[0] for name in ("old", "reference"))
            divergence = kl_estimate(old, reference, self.estimator) * mask
            per_token = -self.kl_coef * divergence
        last = mask.sum(1) - 1
        per_token[torch.arange(len(rows)), last] += rewards.flatten().nan_to_num(0.0)
        counts = mask & counted[:, None]
        if self.whiten_rewards:
            per_token = whiten(per_token, counts, shift_mean=False)
        raw = gae(per_token, values, mask, gamma=self.gamma, lam=self.lam)
        returns = raw + values
        advantages = whiten(raw, counts)
        gauges = {"explained_variance": explained_variance(values[counts].numpy(), returns[counts].numpy())}
        gauges |= {"kl_coef": self.kl_coef, "value": float(values[counts].mean())}
        gauges["return"] = float(returns[counts].mean())
        if divergence is not None and self.kl_target is not None:
            self._adapt(float((divergence.sum(1))[counted].mean()), len(rows))
        columns = zip(rows, advantages.float(), returns.float(), (last + 1).tolist(), strict=True)
        return [
            replace(row, advantages=a[:n].numpy(), returns=r[:n].numpy(), weight=n) for row, a, r, n in columns
        ], gauges

    def _adapt(self, divergence: float, answers: int) -> None:
        assert self.kl_target is not None
        error = min(max(divergence / self.kl_target - 1, -0.2), 0.2)
        self.kl_coef *= 1 + error * answers / self.kl_horizon

    def state_dict(self) -> dict[str, Any]:
        return {"kl_coef": self.kl_coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kl_coef = state["kl_coef"]


def _spread(rows: Sequence[Sampled], advantages: Tensor, by_tokens: bool) -> list[Sampled]:
    """Each answer's advantage at all its tokens."""
    lengths = [len(row.tokens.ids) - row.prompt_length for row in rows]
    return [
        replace(row, advantages=np.full(length, value, np.float32), weight=length if by_tokens else 1)
        for row, length, value in zip(rows, lengths, advantages.flatten().tolist(), strict=True)
    ]


def _group_gauges(rewards: Tensor) -> dict[str, float]:
    """equal_groups: share of the prompts whose answers all have one reward, and from which nothing is learnt."""
    apart = (rewards - rewards.nanmean(1, keepdim=True)).nan_to_num(0.0).abs().amax(1)
    return {"equal_groups": float((apart < 1e-9).double().mean())}
