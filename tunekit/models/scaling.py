"""More data, a larger model or more epochs: laws of pre-training with their published constants, and a fit of own runs.

The laws are those of training from scratch on web text. For fine-tuning they say which way is steeper, not what loss to
expect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from tunekit.errors import RecipeError


@dataclass(frozen=True)
class Law:
    """loss(N, D) = e + a / N ** alpha + b / D ** beta: N weights, D tokens seen once."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float
    source: str

    def loss(self, weights: float, tokens: float) -> float:
        return self.e + self.a / weights**self.alpha + self.b / tokens**self.beta


HOFFMANN = Law(1.69, 406.4, 410.7, 0.34, 0.28, "Hoffmann et al. 2022, arXiv:2203.15556, equation 10")
BESIROGLU = Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658, "Besiroglu et al. 2024, arXiv:2404.10102, refit of it")
# Passes over the same tokens after which more of them are worth 1 / e of new ones (Muennighoff et al. 2023,
# arXiv:2305.16264, R*_D of appendix A).
REPETITIONS = 15.387756
# What the laws were fitted on: weights and tokens in all (Hoffmann et al. 2022, abstract).
WEIGHTS, TOKENS = (70e6, 16e9), (5e9, 500e9)
LEAST_RUNS, DRAWS, SPAN = 4, 500, 3.0  # of a fit: points, bootstrap samples, largest over smallest size


def effective_tokens(unique: float, epochs: float) -> float:
    """What `epochs` passes over `unique` tokens are worth in tokens seen once."""
    repeats = max(0.0, epochs - 1)
    return unique * (min(1.0, epochs) + REPETITIONS * (1 - float(np.exp(-repeats / REPETITIONS))))


def beyond_the_laws(weights: float, tokens: float) -> str:
    """Why the laws say nothing of so many weights, or of so many tokens in all passes together; '' where they do."""
    for name, value, (least, most) in (("weights", weights, WEIGHTS), ("tokens", tokens, TOKENS)):
        if not least <= value <= most:
            return f"{value:,.0f} {name}: the laws were fitted on {least:,.0f} to {most:,.0f}"
    return ""


def compare_uses(weights: float, unique: float, epochs: float, law: Law = BESIROGLU) -> dict[str, float]:
    """The loss of the law now, and where twice the arithmetic goes into each of the three uses."""
    now = effective_tokens(unique, epochs)
    return {
        "now": law.loss(weights, now),
        "twice the data": law.loss(weights, effective_tokens(2 * unique, epochs)),
        "twice the weights": law.loss(2 * weights, now),
        "twice the epochs": law.loss(weights, effective_tokens(unique, 2 * epochs)),
    }


@dataclass(frozen=True)
class Fit:
    """loss = floor + scale / size ** power, with the middle 90 % of each over bootstrap samples of the runs."""

    floor: float
    scale: float
    power: float
    intervals: dict[str, tuple[float, float]]

    def at(self, size: float) -> float:
        return self.floor + self.scale / size**self.power


def fit_runs(sizes: Sequence[float], losses: Sequence[float], seed: int = 0) -> Fit:
    """Raises `RecipeError` where the runs do not carry a fit: too few, too near each other, or no power law."""
    x, y = np.asarray(sizes, float), np.asarray(losses, float)
    if len(np.unique(x)) < LEAST_RUNS:
        raise RecipeError(
            f"--from: {len(np.unique(x))} different sizes: a floor, a scale and a power need {LEAST_RUNS}"
        )
    if x.max() / x.min() < SPAN:
        raise RecipeError(f"--from: the largest run is {x.max() / x.min():.1f} times the smallest: {SPAN:g} are needed")
    best = _fitted(x, y)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        chosen = generator.integers(0, len(x), len(x))
        if len(np.unique(x[chosen])) >= 3:
            drawn.append(_fitted(x[chosen], y[chosen]))
    low, high = np.quantile(np.array(drawn), [0.05, 0.95], axis=0)
    names = ("floor", "scale", "power")
    intervals = {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}
    if intervals["power"][0] <= 1e-3 or intervals["power"][1] > 10 * max(best[2], 1e-9):
        between = "{:.3g} to {:.3g}".format(*intervals["power"])
        raise RecipeError(
            f"--from: the runs do not carry a fit: its power is {between}",
            "Add runs of other sizes, or several seeds of each.",
        )
    floor, scale, power = best.tolist()
    return Fit(floor, scale, power, intervals)


def _fitted(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(floor, scale, power) by least squares, none of them negative; sizes are taken over their geometric mean."""
    middle = float(np.exp(np.log(x).mean()))
    spread = max(float(y.max() - y.min()), 1e-9)
    found = least_squares(
        lambda p: p[0] + p[1] * (x / middle) ** -p[2] - y,
        x0=[max(float(y.min()) - spread / 2, 0.0), spread, 0.5],
        bounds=([0, 0, 0], [float(y.min()), np.inf, 5]),
    )
    floor, scale, power = found.x
    return np.array([floor, scale * middle**power, power])
