"""How good a reward model is, from its rewards of held-out pairs: whether a policy may be trained on it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunekit.evals.statistics import interval

BINS = 10
LONGER = 1.2  # from this ratio of lengths on, one answer counts as longer


def reward_report(
    chosen: NDArray[np.float64],
    rejected: NDArray[np.float64],
    chosen_length: NDArray[np.int64],
    rejected_length: NDArray[np.int64],
) -> dict[str, Any]:
    """Figures of P pairs from their rewards and the lengths of their answers in tokens, each `(P,)`.

    accuracy: share of pairs with the higher reward for the chosen answer, and its 95 % interval, also by which answer
        is longer
    margin: mean difference
    ece: expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3) of the probability sigma(difference)
    length_correlation: Pearson's, of the difference of rewards with that of lengths: near 1, it has learnt length
    preferred_longer: share of pairs in which the longer answer wins
    """
    margin, right = chosen - rejected, (chosen > rejected).astype(float)
    ratio = chosen_length / rejected_length
    parts = {
        "chosen_longer": ratio >= LONGER,
        "similar_length": (ratio < LONGER) & (ratio > 1 / LONGER),
        "chosen_shorter": ratio <= 1 / LONGER,
    }
    unequal = chosen_length != rejected_length
    longer_wins = (margin > 0) == (chosen_length > rejected_length)
    return {
        "pairs": len(margin),
        "accuracy": interval(right.tolist(), seed=0).as_dict(),
        "margin": float(margin.mean()),
        "ece": calibration_error(margin),
        "length_correlation": _correlation(margin, (chosen_length - rejected_length).astype(float)),
        "preferred_longer": float(longer_wins[unequal].mean()) if unequal.any() else None,
        "accuracy_by_length": {
            name: {"pairs": int(mask.sum()), "accuracy": float(right[mask].mean()) if mask.any() else None}
            for name, mask in parts.items()
        },
        "rewards": {"mean": float(np.mean([chosen, rejected])), "std": float(np.std([chosen, rejected]))},
    }


def calibration_error(margin: NDArray[np.float64]) -> float:
    """Mean distance of confidence and accuracy over bins of confidence, weighted by pairs; both lie above one half.

    The more likely answer by the model has the probability sigma(|margin|) >= 1/2, and is the chosen one or not.
    """
    confidence, right = 1 / (1 + np.exp(-np.abs(margin))), margin > 0
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = [
        abs(confidence[bins == i].mean() - right[bins == i].mean()) * (bins == i).mean()
        for i in range(BINS)
        if (bins == i).any()
    ]
    return float(sum(gaps))


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """None where one of the two does not vary."""
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def sentences(report: dict[str, Any]) -> list[str]:
    """The figures for people, and whether they are good enough to train a policy on."""
    accuracy = report["accuracy"]
    said = [
        f"accuracy {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] on {report['pairs']:,} "
        f"pairs, margin {report['margin']:.3f}, calibration error {report['ece']:.3f}"
    ]
    correlation = report["length_correlation"]
    parts = ", ".join(
        f"{name.replace('_', ' ')} {part['accuracy']:.3f} ({part['pairs']})"
        for name, part in report["accuracy_by_length"].items()
        if part["accuracy"] is not None
    )
    said.append(f"by length: {parts}; correlation of reward and length " + _shown(correlation))
    if accuracy["low"] <= 0.5:
        said.append("not better than chance within its interval: a policy trained on it would learn noise")
    elif correlation is not None and abs(correlation) > 0.5:
        said.append("it has learnt length more than anything else: a policy trained on it would too")
    return said


def _shown(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
