"""How far a score can be trusted: 95 % intervals, and the difference of two models on the same items."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 2000
AT_ONCE = 2_000_000  # numbers of resamples that are in memory together
T = TypeVar("T")
Better: TypeAlias = Literal["higher", "lower", "zero", "neither"]


@dataclass(frozen=True)
class Score:
    """A figure of `n` items with its 95 % interval; NaN where there is none (no items).

    `better`: where a good model is: higher, lower, nearest to zero (a bias, to either side), or neither, where it
    depends on the item (a refusal).
    """

    value: float
    low: float
    high: float
    n: int
    interval: Literal["wilson", "bootstrap"]
    better: Better = "higher"

    def as_dict(self) -> dict[str, Any]:
        """In JSON's terms: None for what is no number."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Difference:
    """The second minus the first of two means over the same `n` items; `p_value` of there being no difference."""

    value: float
    low: float
    high: float
    n: int
    p_value: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def interval(values: Sequence[float], *, seed: int) -> Score:
    """The mean of `values`: by Wilson (1927) where each is 0 or 1, else by the bootstrap of the mean."""
    found = np.asarray(values, float)
    if not len(found):
        return Score(math.nan, math.nan, math.nan, 0, "wilson")
    value = float(found.mean())
    if np.isin(found, (0, 1)).all():
        from scipy import stats  # takes most of a second, and most commands measure nothing

        test = stats.binomtest(int(found.sum()), len(found))
        low, high = test.proportion_ci(LEVEL, method="wilson")
        return Score(value, float(low), float(high), len(found), "wilson")
    low, high = _bounds(_resample(found, seed))
    return Score(value, low, high, len(found), "bootstrap")


def interval_of_set(function: Callable[[Sequence[T]], float], items: Sequence[T], *, seed: int) -> Score:
    """`function` of all items together, such as a correlation, with the bootstrap over the items."""
    if not items:
        return Score(math.nan, math.nan, math.nan, 0, "bootstrap")
    generator = np.random.default_rng(seed)
    resamples = generator.integers(len(items), size=(RESAMPLES // 4, len(items)))  # each costs a pass over the items
    values = np.array([function([items[i] for i in chosen]) for chosen in resamples.tolist()])
    low, high = _bounds(values[np.isfinite(values)])
    return Score(float(function(items)), low, high, len(items), "bootstrap")


def paired(first: Sequence[float], second: Sequence[float], *, seed: int) -> Difference:
    """Two models on the same items, in the same order: the second against the first.

    The test is McNemar's (1947), exact, where each value is 0 or 1; else the signs of the differences are turned at
    random (Fisher's randomisation test, by scipy).
    """
    before, after = np.asarray(first, float), np.asarray(second, float)
    if before.shape != after.shape or not len(before):
        raise ValueError(f"{len(before)} and {len(after)} values are not the same items")
    change = after - before
    low, high = _bounds(_resample(change, seed))
    return Difference(float(change.mean()), low, high, len(change), _p_value(change, seed))


def _p_value(change: NDArray[np.float64], seed: int) -> float:
    from scipy import stats

    changed = change[change != 0]
    if len(changed) < 2:  # of one item, the other sign is as likely
        return 1.0
    if np.isin(changed, (-1, 1)).all():
        return float(stats.binomtest(int((changed > 0).sum()), len(changed)).pvalue)
    generator = np.random.default_rng(seed)
    batch = max(1, AT_ONCE // len(changed))
    test = stats.permutation_test(
        (changed,),  # the sign of 0 makes no difference
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=batch,
        rng=generator,
        vectorized=True,
    )
    return float(test.pvalue)


def said(difference: Difference, better: str = "higher") -> str:
    """A sentence, of a score that is a share: "better by 3.1 points [0.4, 5.9] (n = 500, p = 0.02)".

    A difference is said to be one where interval and test agree on it: of few changed items the interval is too narrow.
    """
    value, low, high = (100 * each for each in (difference.value, difference.low, difference.high))
    facts = f"(n = {difference.n:,}, p = {difference.p_value:.2g})"
    if low <= 0 <= high or difference.p_value >= 1 - LEVEL:
        return f"no difference seen: {value:+.1f} points [{low:.1f}, {high:.1f}] {facts}"
    if better not in ("higher", "lower"):
        return f"changed by {value:+.1f} points [{low:.1f}, {high:.1f}] {facts}"
    word = "better" if (value > 0) == (better == "higher") else "worse"
    if value < 0:
        low, high = -high, -low
    return f"{word} by {abs(value):.1f} points [{low:.1f}, {high:.1f}] {facts}"


def _resample(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of resamples of `values`, a few at a time so that memory stays small."""
    generator = np.random.default_rng(seed)
    rows = max(1, AT_ONCE // len(values))
    parts = [
        values[generator.integers(len(values), size=(min(rows, RESAMPLES - begin), len(values)))].mean(axis=1)
        for begin in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(parts)


def _bounds(values: NDArray[np.float64]) -> tuple[float, float]:
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
