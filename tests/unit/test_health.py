"""Warnings of a preference run: each when its cause is there, once, and none of a run that is well."""

import math
from collections.abc import Callable

import pytest

from tunekit.train.health import CHANCE, LARGE_MARGIN, PATIENCE, WINDOW, Health

Metrics = dict[str, float]


def said(metrics: Callable[[int], Metrics], steps: int = 200) -> list[tuple[int, str]]:
    """What is said after which of `steps` steps, whose metrics are a function of the step from 1."""
    health = Health()
    return [(step, text) for step in range(1, steps + 1) for text in health.look(step, metrics(step))]


def healthy(step: int) -> Metrics:
    """Chosen up, rejected down, with the noise of small batches."""
    noise = math.sin(7.3 * step)
    chosen, rejected = 0.01 * step + 0.3 * noise, -0.02 * step - 0.2 * noise
    return {
        "accuracy": 0.7 + 0.2 * noise,
        "margin": chosen - rejected,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "kl": 0.1,
    }


def test_a_healthy_run_is_silent() -> None:
    assert said(healthy) == []


def test_stages_without_these_metrics_are_silent() -> None:
    assert said(lambda step: {}) == [] and said(lambda step: {"kl": 1e9, "reward_rejected": -9.0 * step}) == []


def test_chosen_answers_that_become_less_likely_are_told_once_after_two_windows() -> None:
    falling = said(lambda step: {**healthy(step), "reward_chosen": -0.01 * step})
    ((step, text),) = falling
    assert step == 2 * WINDOW
    earlier, now = (-0.01 * sum(range(a, a + WINDOW)) / WINDOW for a in (1, WINDOW + 1))
    assert f"reward {earlier:.3f}, then {now:.3f}" in text
    assert "likelihood displacement" in text and "objective.sft_weight" in text


def test_rewards_that_no_reference_is_behind_may_be_below_zero_and_fall() -> None:
    """Those of simpo and orpo are log-probabilities, those of a reward model have no zero."""

    def metrics(step: int) -> Metrics:
        return {key: value for key, value in healthy(step).items() if key != "kl"} | {"reward_chosen": -0.02 * step}

    assert said(metrics) == []
    ((_, text),) = said(lambda step: metrics(step) | {"margin": 2 * LARGE_MARGIN})
    assert "learning_rate" in text and "objective" not in text


def test_a_fall_is_measured_from_the_window_before_and_not_from_the_start() -> None:
    """Far below the reference at first, near it at step 60, then down again."""
    ((step, _),) = said(lambda step: {**healthy(step), "reward_chosen": -3 + 0.04 * min(step, 120 - step)}, 95)
    assert step > 60


@pytest.mark.parametrize(
    "chosen",
    [
        lambda step: 3 - 0.01 * step,  # falls and is above the reference all the same
        lambda step: -1 + 0.001 * step,  # is below it and rises
        lambda step: -0.5,  # stays
        lambda step: -0.02 * step if step <= 15 else 0.03 * (step - 25),  # a dip at the start
    ],
)
def test_chosen_answers_that_recover_or_are_above_the_reference_are_no_displacement(
    chosen: Callable[[int], float],
) -> None:
    assert said(lambda step: {**healthy(step), "reward_chosen": chosen(step)}) == []


def test_one_bad_step_is_no_window() -> None:
    bad = {"accuracy": 0.0, "margin": 150.0, "reward_chosen": -5.0}
    assert said(lambda step: healthy(step) | (bad if step == 90 else {})) == []


def test_accuracy_at_chance_is_told_once_and_only_after_the_beginning() -> None:
    ((step, text),) = said(lambda step: {**healthy(step), "accuracy": 0.5})
    assert step == PATIENCE and "accuracy 0.50" in text and f"after {PATIENCE}" in text and "swapped" in text
    assert said(lambda step: {**healthy(step), "accuracy": 0.5}, PATIENCE - 1) == []
    assert said(lambda step: {**healthy(step), "accuracy": 0.5 if step <= PATIENCE - 5 else 1.0}) == []
    assert said(lambda step: {**healthy(step), "accuracy": CHANCE + 0.001}) == []
    assert said(lambda step: {**healthy(step), "accuracy": CHANCE - 0.001})[0][0] == PATIENCE


def test_accuracy_that_falls_back_to_chance_is_told_when_the_window_does() -> None:
    ((step, _),) = said(lambda step: {**healthy(step), "accuracy": 1.0 if step <= 100 else 0.0})
    # The mean of the last 20 is (20 - n) / 20 after n steps: below 0.55 from n = 10 on.
    assert step == 110


def test_a_margin_beyond_what_moves_the_loss_is_told_once() -> None:
    ((step, text),) = said(lambda step: {**healthy(step), "margin": LARGE_MARGIN + 1})
    assert step == WINDOW and f"margin {LARGE_MARGIN + 1:.1f}" in text and "learning_rate" in text
    assert said(lambda step: {**healthy(step), "margin": LARGE_MARGIN}) == []
    ((step, _),) = said(lambda step: {**healthy(step), "margin": float(step)})
    # The mean of the last 20 steps up to n is n - 9.5: above 20 from n = 30 on.
    assert step == 30


def test_each_cause_is_told_for_itself() -> None:
    bad = said(lambda step: {"accuracy": 0.4, "margin": 99.0, "reward_chosen": -float(step), "kl": 1.0})
    assert [step for step, _ in bad] == [WINDOW, 2 * WINDOW, PATIENCE]
