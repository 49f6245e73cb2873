"""Figures of the answers of a rollout: what a person would look at to see whether it goes well."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunekit.rollout.rewards import Scores
from tunekit.rollout.samples import Completion

GRAM = 4  # tokens that count as a repetition when they come again


def answer_gauges(completions: Sequence[Completion], scores: Scores) -> dict[str, float]:
    """reward: mean of the weighted sum, and of each source alone;  length: tokens;  ended: share that ended by itself;

    entropy: nats a token, as sampled;  repeated: share of tokens that repeat something (see `repeated`).
    """
    total = scores.total[scores.valid]
    lengths = np.array([len(each.ids) for each in completions])
    gauges = {
        "reward": float(total.mean()),
        "reward_std": float(total.std()),
        "reward_failed": float(1 - scores.valid.mean()),
        "length": float(lengths.mean()),
        "ended": float(np.mean([each.ended for each in completions])),
        "repeated": float(np.average([repeated(each.ids) for each in completions], weights=lengths)),
    }
    if len(scores.values) > 1:
        gauges |= {f"reward_{name}": float(np.nanmean(values)) for name, values in scores.values.items()}
    entropies = [each.entropies for each in completions if each.entropies is not None]
    if entropies:
        gauges["entropy"] = float(np.concatenate(entropies).mean())
    return gauges


def repeated(ids: NDArray[np.int32]) -> float:
    """Share of the runs of `GRAM` tokens of an answer that came before in it."""
    runs = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def explained_variance(values: NDArray[np.float64], returns: NDArray[np.float64]) -> float:
    """1 - var(R - V) / var(R): 1 is a perfect value function, 0 as good as a constant, less than 0 worse."""
    spread = returns.var()
    return float(1 - (returns - values).var() / spread) if spread > 0 else 0.0
