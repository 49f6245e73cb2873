"""Intervals cover what they promise, and tests of two models find what is there and nothing else."""

import itertools
import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from tunekit.evals.statistics import interval, interval_of_set, paired, said


def test_wilson_intervals_cover_95_percent_on_average() -> None:
    """Averaged over the true share, as for single shares the discrete interval swings (Brown et al. 2001)."""
    n, covered, weight = 100, 0.0, 0.0
    bounds = [interval([1] * k + [0] * (n - k), seed=0) for k in range(n + 1)]
    for share in np.linspace(0.01, 0.99, 99):
        chances = stats.binom.pmf(np.arange(n + 1), n, share)
        covered += sum(chance for chance, each in zip(chances, bounds, strict=True) if each.low <= share <= each.high)
        weight += 1
    assert 0.94 <= covered / weight <= 0.96


def test_bootstrap_intervals_of_a_mean_cover_95_percent() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(600):
        found = interval(generator.beta(2, 3, size=150).tolist(), seed=seed)
        hits += found.low <= 0.4 <= found.high
    assert 0.94 <= hits / 600 <= 0.96 and found.interval == "bootstrap"


def test_paired_intervals_cover_95_percent_and_reject_equal_models_one_time_in_twenty() -> None:
    generator = np.random.default_rng(2)
    hits = wrong = 0
    for seed in range(600):
        hard = generator.random(200)
        first, second = ((generator.random(200) < hard).astype(float) for _ in range(2))
        found = paired(first.tolist(), second.tolist(), seed=seed)
        hits += found.low <= 0 <= found.high
        wrong += found.p_value < 0.05
    assert 0.94 <= hits / 600 <= 0.96
    assert wrong / 600 <= 0.05, "McNemar's exact test is conservative"


def test_wilson_is_that_of_the_textbook() -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263 gives 0.2553 to 0.3662."""
    found = interval([1] * 81 + [0] * 182, seed=0)
    assert (round(found.low, 4), round(found.high, 4), found.n, found.interval) == (0.2553, 0.3662, 263, "wilson")


@pytest.mark.parametrize("values", [[1.0], [0.0], [0.5], [1.0] * 9, [0.25] * 9])
def test_few_and_equal_values_have_an_interval(values: list[float]) -> None:
    found = interval(values, seed=0)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_no_items_have_no_score() -> None:
    for found in (interval([], seed=0), interval_of_set(len, [], seed=0)):
        assert math.isnan(found.value) and found.n == 0
        assert found.as_dict()["value"] is None


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random(50).tolist()
    assert interval(values, seed=3) == interval(values, seed=3) != interval(values, seed=4)


def test_a_set_score_is_resampled_over_its_items() -> None:
    values = np.random.default_rng(0).random(200).tolist()
    mean = interval_of_set(lambda some: float(np.mean(some)), values, seed=0)
    plain = interval(values, seed=0)
    assert mean.value == plain.value and mean.low == pytest.approx(plain.low, abs=0.01)


def test_resamples_for_which_a_score_is_not_defined_do_not_count() -> None:
    found = interval_of_set(lambda some: 1.0 if len(set(some)) > 1 else math.nan, [0, 1], seed=0)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_mcnemar_is_the_exact_binomial_of_the_changed_items() -> None:
    first, second = [0] * 10 + [1] * 2 + [1] * 30, [1] * 10 + [0] * 2 + [1] * 30
    found = paired(first, second, seed=0)
    assert found.value == 8 / 42 and found.p_value == pytest.approx(2 * stats.binom.cdf(2, 12, 0.5))


def test_a_difference_of_other_values_is_tested_by_turning_signs() -> None:
    generator = np.random.default_rng(0)
    first = generator.random(60)
    found = paired(first.tolist(), (first + 0.05 + 0.05 * generator.standard_normal(60)).tolist(), seed=0)
    assert found.p_value < 0.01 and found.low > 0
    assert paired(first.tolist(), first.tolist(), seed=0).p_value == 1


@pytest.mark.parametrize(("first", "second"), [([0.2], [0.7]), ([1], [0]), ([0.5], [0.5])])
def test_one_item_shows_no_difference(first: list[float], second: list[float]) -> None:
    found = paired(first, second, seed=0)
    assert found.value == second[0] - first[0] and found.p_value == 1
    assert said(found).startswith("no difference seen")


def test_the_p_value_of_few_items_is_that_of_every_pattern_of_signs() -> None:
    change = np.array([0.3, 0.1, 0.4, -0.1, 0.5])
    means = [abs(np.mean(change * signs)) for signs in itertools.product((-1, 1), repeat=5)]
    share = np.mean(np.array(means) >= abs(change.mean()) - 1e-12)
    assert paired([0] * 5, change.tolist(), seed=0).p_value == pytest.approx(share)
    unchanged = [0.0] * 30
    assert paired([0] * 35, change.tolist() + unchanged, seed=0).p_value == pytest.approx(share)


def test_a_test_of_many_items_stays_small_in_memory() -> None:
    first, second = np.random.default_rng(0).random((2, 5_000))
    tracemalloc.start()
    paired(first, second, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6, "with all resamples at once it grows with the items, to gigabytes"


def test_a_command_that_measures_nothing_does_not_load_scipy() -> None:
    code = "import sys, tunekit.evals.statistics; assert 'scipy.stats' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_models_on_other_items_are_not_compared() -> None:
    with pytest.raises(ValueError, match="3 and 2 values"):
        paired([1, 0, 1], [1, 0], seed=0)


@pytest.mark.parametrize(
    ("change", "better", "sentence"),
    [
        ([1] * 50 + [0] * 50, "higher", "better by 50.0 points"),
        ([-1] * 50 + [0] * 50, "higher", "worse by 50.0 points"),
        ([-1] * 50 + [0] * 50, "lower", "better by 50.0 points"),
        ([1] * 50 + [0] * 50, "lower", "worse by 50.0 points"),
        ([0.03] * 50 + [0.02] * 50, "higher", "better by 2.5 points [2.4"),
        ([-1] * 50 + [0] * 50, "neither", "changed by -50.0 points [-6"),
        ([1] * 50 + [0] * 50, "zero", "changed by +50.0 points [4"),
        ([1, -1] * 50, "higher", "no difference seen: +0.0 points [-"),
        ([1] * 4 + [0] * 96, "higher", "no difference seen: +4.0 points [1.0, "),
    ],
)
def test_a_difference_is_said_in_words(change: list[float], better: str, sentence: str) -> None:
    found = said(paired([0] * 100, change, seed=0), better)
    assert found.startswith(sentence) and "(n = 100, p = " in found
