"""The metrics of generated text, on answers that a person can score."""

from typing import get_args

import pytest

from tunekit.recipe.types import Metric
from tunekit.train.metrics import METRICS, compute


def score(name: str, prediction: str, reference: str) -> float:
    return compute((name,), [prediction], [reference])[f"eval_{name}"]


@pytest.mark.parametrize(
    ("prediction", "reference", "equal"),
    [
        ("SELECT 1", "SELECT 1", 1),
        ("  SELECT\n 1 ", "SELECT 1", 1),
        ("select 1", "SELECT 1", 0),
        ("SELECT 1;", "SELECT 1", 0),
        ("", "", 1),
        ("", "a", 0),
    ],
)
def test_exact_match_minds_all_but_white_space(prediction: str, reference: str, equal: int) -> None:
    assert score("exact_match", prediction, reference) == equal


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("the cat sat", "the cat sat", 1),
        ("The CAT sat", "the cat sat", 1),
        ("sat cat the", "the cat sat", 1),
        ("the cat", "the cat sat down", 2 * 2 / 6),
        ("the the the", "the cat", 2 * 1 / 5),  # a word counts as often as the reference has it
        ("a b", "c d", 0),
        ("", "c d", 0),
        ("a b", "", 0),
        ("", "", 1),
    ],
)
def test_token_f1(prediction: str, reference: str, f1: float) -> None:
    assert score("token_f1", prediction, reference) == pytest.approx(f1)


def test_scores_are_means_over_the_rows_under_names_with_eval() -> None:
    found = compute(("exact_match", "token_f1"), ["a", "b c", "x"], ["a", "b d", "y"])
    assert found == pytest.approx({"eval_exact_match": 1 / 3, "eval_token_f1": 0.5})
    assert compute((), ["a"], ["b"]) == {}


def test_a_recipe_takes_the_metrics_there_are() -> None:
    assert set(get_args(Metric)) == set(METRICS)
