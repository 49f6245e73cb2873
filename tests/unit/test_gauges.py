"""Figures of the answers of a rollout."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekit.rollout.gauges import explained_variance, repeated


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


@pytest.mark.parametrize("length", [1, 3])
def test_an_answer_too_short_for_a_run_repeats_nothing(length: int) -> None:
    assert repeated(ids(*[7] * length)) == 0.0


def test_only_whole_runs_of_four_count() -> None:
    assert repeated(ids(1, 2, 3, 9, 1, 2, 3, 8)) == 0.0
    assert repeated(ids(1, 2, 3, 4, 9, 1, 2, 3, 4)) == pytest.approx(1 / 6)  # of the six runs the last came before


def test_one_token_again_and_again_repeats_all_but_the_first_run() -> None:
    assert repeated(ids(*[7] * 23)) == pytest.approx(1 - 1 / 20)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_an_answer_said_again_repeats_more(tokens: list[int]) -> None:
    assert 0 <= repeated(ids(*tokens)) < 1
    assert repeated(ids(*tokens, *tokens, *tokens)) >= repeated(ids(*tokens))


def test_explained_variance_of_a_perfect_value_function_is_1_and_of_a_constant_0() -> None:
    returns = np.array([0.0, 1.0, 5.0, 2.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(returns + 3, returns) == pytest.approx(1.0)  # a shift is no variance
    assert explained_variance(np.full(4, 2.5), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)  # twice the error: four times its variance


def test_returns_that_do_not_vary_have_nothing_to_explain() -> None:
    assert explained_variance(np.array([1.0, 2.0]), np.array([3.0, 3.0])) == 0.0
