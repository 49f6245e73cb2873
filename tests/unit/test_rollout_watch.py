"""What ends a run of online training, or warns: the cause in words, each warning once, nothing while all is well."""

import pytest

from tunekit.errors import Diverged
from tunekit.rollout.watch import RolloutWatch

HEALTHY = {
    "kl": 1.0,
    "kl_error": 0.1,
    "entropy": 1.2,
    "length": 40.0,
    "ended": 0.95,
    "repeated": 0.02,
    "clip_fraction": 0.1,
    "sampling_difference": 1e-5,
    "approx_kl": 0.01,
    "reward": 0.3,
}


def watch(**bounds: float | None) -> RolloutWatch:
    values: dict[str, float | None] = {"kl": 10.0, "entropy": 0.1, "update_kl": None, "sampling": 1e-3}
    values |= {"length": 3.0} | bounds
    return RolloutWatch(**values)  # type: ignore[arg-type]


def look(at: RolloutWatch, step: int = 1, /, **changed: float) -> list[str]:
    return list(at.look(step, HEALTHY | changed))


def test_healthy_figures_say_nothing() -> None:
    one = watch()
    for step in range(1, 20):
        assert look(one, step, kl=step / 2, length=40.0 - step, entropy=1.2 - step / 20) == []


def test_a_later_step_on_the_same_rollout_has_no_figures_of_answers() -> None:
    assert list(watch().look(2, {"approx_kl": 0.01, "clip_fraction": 0.1})) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kl": -0.6}, ["divergence from the reference -0.60 nats", "6 standard errors below 0", "rollout.top_p: 1"]),
        ({"kl": 10.1}, ["10.1 nats an answer from its reference", "limits.kl: 10", "samples.jsonl"]),
        ({"entropy": 0.09}, ["entropy 0.0900 nats", "limits.entropy: 0.1", "temperature"]),
        ({"length": 2.9}, ["2.9 tokens", "limits.length: 3", "samples.jsonl"]),
        ({"sampling_difference": 0.002}, ["sampling and training differ by 0.002 nats", "bound 0.001", "weights"]),
        ({"sampling_difference": float("nan")}, ["differ by nan nats"]),
    ],
)
def test_a_stop_names_its_cause_and_what_to_do(changed: dict[str, float], words: list[str]) -> None:
    with pytest.raises(Diverged) as caught:
        look(watch(), 7, **changed)
    assert caught.value.message.startswith("step 7: ") and caught.value.fix
    for each in words:
        assert each in str(caught.value)


@pytest.mark.parametrize(
    ("bounds", "changed"),
    [
        ({"kl": None}, {"kl": 1e6}),
        ({"entropy": None}, {"entropy": 0.05}),
        ({"length": None}, {"length": 6.0}),
        ({}, {"length": 6.0}),
        ({"sampling": None}, {"sampling_difference": 9.0}),
        ({}, {"kl": 10.0}),  # at a bound is not above it
        ({}, {"entropy": 0.1}),
        ({}, {"sampling_difference": 1e-3}),
        ({}, {"kl": -0.4}),  # four standard errors: it can be chance
        ({}, {"kl": -0.04, "kl_error": 0.0}),  # answers that are all alike have no error to measure with
    ],
)
def test_what_is_within_its_bound_or_has_none_does_not_stop(
    bounds: dict[str, float | None], changed: dict[str, float]
) -> None:
    assert look(watch(**bounds), **changed) == []


WARNINGS = [
    ({"entropy": 0.01}, "entropy 0.0100 nats a token: all answers are nearly the same"),
    ({"length": 3.9}, "answers have shrunk from 40 to 3.9 tokens"),
    ({"ended": 0.05}, "95% of the answers do not end within rollout.max_new_tokens"),
    ({"repeated": 0.6}, "60% of what the answers say repeats itself"),
    ({"clip_fraction": 0.7}, "the gradient of 70% of the tokens is cut"),
]


@pytest.mark.parametrize(("changed", "words"), WARNINGS)
def test_each_warning_is_said_once(changed: dict[str, float], words: str) -> None:
    one = watch(entropy=None)
    assert look(one, 1) == []
    (said,) = look(one, 2, **changed)
    assert words in said
    assert look(one, 3, **changed) == [] and look(one, 4) == [] and look(one, 5, **changed) == []


def test_what_was_said_does_not_silence_another_warning() -> None:
    one = watch(entropy=None)
    look(one)
    said = [line for changed, _ in WARNINGS for line in look(one, **changed)]
    assert len(said) == len(set(said)) == len(WARNINGS)


def test_answers_that_are_short_from_the_start_have_not_shrunk() -> None:
    one = watch(length=None)
    assert look(one, 1, length=1.5) == [] and look(one, 2, length=1.0) == []


def test_the_first_length_is_that_of_the_first_rollout_and_not_of_a_later_one() -> None:
    one = watch()
    look(one, 1, length=100.0)
    assert look(one, 2, length=20.0) == []
    assert one.first_length == 100.0
    assert "from 100 to 9.0" in look(one, 3, length=9.0)[0]


def test_the_policy_has_moved_where_the_last_step_went_beyond_the_bound() -> None:
    one = watch(update_kl=0.05)
    assert not one.moved()
    look(one, 1, approx_kl=0.06)
    assert one.moved()
    look(one, 2, approx_kl=0.04)
    assert not one.moved()


def test_without_a_bound_the_policy_never_moves_too_far() -> None:
    one = watch()
    look(one, 1, approx_kl=100.0)
    assert not one.moved()
