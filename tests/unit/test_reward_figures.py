"""Figures of a reward model, by hand and of simulated models whose figures are known."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tunekit.evals.rewards import BINS, calibration_error, reward_report, sentences

Array = NDArray[Any]


def report(margin: Array, chosen_length: Any = None, rejected_length: Any = None) -> dict[str, Any]:
    """Of pairs whose rejected answers have the reward 1; of equal lengths where none are given."""
    lengths = [np.array([9] * len(margin) if each is None else each) for each in (chosen_length, rejected_length)]
    return reward_report(1 + np.array(margin, float), np.ones(len(margin)), *lengths)


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_the_figures_of_four_pairs_by_hand() -> None:
    found = report([2.0, 1.0, -1.0, 4.0], [30, 10, 8, 11], [10, 10, 10, 10])
    assert found["pairs"] == 4 and found["margin"] == 1.5
    assert found["accuracy"]["value"] == 0.75 and found["accuracy"]["low"] < 0.75 < found["accuracy"]["high"]
    # The longer answer wins in the first, the third (the rejected one, 10 > 8) and the fourth; the second has none.
    assert found["preferred_longer"] == 1.0
    assert found["accuracy_by_length"] == {
        "chosen_longer": {"pairs": 1, "accuracy": 1.0},
        "similar_length": {"pairs": 2, "accuracy": 1.0},
        "chosen_shorter": {"pairs": 1, "accuracy": 0.0},
    }
    assert found["length_correlation"] == pytest.approx(np.corrcoef([2, 1, -1, 4], [20, 0, -2, 1])[0, 1])
    assert found["rewards"]["mean"] == pytest.approx(1.75)
    assert found["rewards"]["std"] == pytest.approx(np.std([3, 2, 0, 5, 1, 1, 1, 1]))


def test_a_pair_counts_as_longer_from_a_fifth_more_on() -> None:
    found = report(np.array([1.0, -1.0, 1.0, -1.0]), [120, 119, 100, 100], [100, 100, 120, 119])["accuracy_by_length"]
    assert found["chosen_longer"] == {"pairs": 1, "accuracy": 1.0}
    assert found["chosen_shorter"] == {"pairs": 1, "accuracy": 1.0}
    assert found["similar_length"] == {"pairs": 2, "accuracy": 0.0}


def test_what_is_not_there_is_none_and_not_zero() -> None:
    found = report(np.array([1.0, -1.0]))
    assert found["length_correlation"] is None and found["preferred_longer"] is None
    assert found["accuracy_by_length"]["chosen_longer"] == {"pairs": 0, "accuracy": None}
    assert report(np.array([1.0]), [3], [2])["length_correlation"] is None
    assert report(np.array([0.3, 0.3]), [3, 5], [2, 2])["length_correlation"] is None
    assert all(isinstance(line, str) for line in sentences(found)) and "not defined" in sentences(found)[1]


def test_equal_rewards_are_not_right() -> None:
    assert report(np.zeros(3))["accuracy"]["value"] == 0


def test_calibration_error_by_hand() -> None:
    # One bin, 0.9 sure: 3 of 4 right. Another, 0.6 sure: 1 of 2 right. (4 * 0.15 + 2 * 0.1) / 6
    sure, unsure = logit(0.9), logit(0.6)
    margin = np.array([sure, sure, sure, -sure, unsure, -unsure])
    assert calibration_error(margin) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    assert calibration_error(np.array([50.0, 50.0])) == pytest.approx(0, abs=1e-12)
    assert calibration_error(np.array([-50.0, -50.0])) == pytest.approx(1)
    assert calibration_error(-np.array([800.0])) == 1


def test_gaps_of_different_bins_do_not_cancel() -> None:
    """0.65 sure and always right, 0.85 sure and half right: gaps of 0.35 each way, and a mean gap of 0."""
    margin = np.array([logit(0.65)] * 4 + [logit(0.85), -logit(0.85)] * 2)
    assert calibration_error(margin) == pytest.approx(0.35)


@pytest.mark.parametrize(("scale", "low", "high"), [(1.0, 0.0, 0.012), (4.0, 0.15, 0.3), (0.1, 0.15, 0.3)])
def test_a_model_is_calibrated_where_its_margins_are_the_log_odds(scale: float, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    odds = np.abs(rng.normal(0, 2, 50_000))
    wins = rng.random(50_000) < 1 / (1 + np.exp(-odds))
    assert low <= calibration_error(scale * np.where(wins, odds, -odds)) < high


def test_bins_of_confidence_reach_from_one_half_to_one() -> None:
    """Each bin alone, at its middle: a model that is never right is wrong by as much as it is sure."""
    for i in range(BINS):
        sure = 0.5 + (i + 0.5) / BINS / 2
        assert calibration_error(np.array([-logit(sure)] * 3)) == pytest.approx(sure)


def lengths(rng: np.random.Generator) -> tuple[Array, Array]:
    return rng.integers(5, 200, 3_000), rng.integers(5, 200, 3_000)


def test_a_model_that_only_counts_tokens_is_told() -> None:
    chosen, rejected = lengths(np.random.default_rng(0))
    chosen = np.where(np.random.default_rng(1).random(3_000) < 0.6, np.maximum(chosen, rejected) + 1, chosen)
    found = report(0.01 * (chosen - rejected), chosen, rejected)
    assert found["length_correlation"] == pytest.approx(1) and found["preferred_longer"] == 1
    assert found["accuracy_by_length"]["chosen_longer"]["accuracy"] == 1
    assert found["accuracy_by_length"]["chosen_shorter"]["accuracy"] == 0
    assert found["accuracy"]["value"] > 0.6 and "learnt length more than anything else" in sentences(found)[-1]
    assert report(0.01 * (rejected - chosen), chosen, rejected)["length_correlation"] == pytest.approx(-1)


def test_a_model_that_does_not_look_at_length_is_not() -> None:
    rng = np.random.default_rng(0)
    chosen, rejected = lengths(rng)
    found = report(rng.normal(1, 1, 3_000), chosen, rejected)
    assert abs(found["length_correlation"]) < 0.05 and found["preferred_longer"] == pytest.approx(0.5, abs=0.03)
    # Phi(1) = 0.841 is the share of margins above 0, whichever is longer.
    shares = [part["accuracy"] for part in found["accuracy_by_length"].values()]
    assert shares == pytest.approx([0.841] * 3, abs=0.05)
    said = sentences(found)
    assert len(said) == 2 and "on 3,000 pairs" in said[0] and "chosen longer 0.8" in said[1]


def test_a_model_that_is_no_better_than_chance_is_told_to_be_that() -> None:
    margin = np.array([1.0, -1.0] * 20 + [1.0] * 4)
    assert "not better than chance" in sentences(report(margin))[-1]
    assert "chance" not in " ".join(sentences(report(np.array([1.0] * 40 + [-1.0] * 4))))
