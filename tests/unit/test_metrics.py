"""The metrics of generated text, on answers that a person can score."""

import pytest

from tunekit.errors import RecipeError
from tunekit.train.metrics import METRICS, check_metrics, compute


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


def test_unknown_metrics_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(RecipeError, match=r"eval\.metrics: bleu: unknown metric") as caught:
        check_metrics(("exact_match", "bleu"), "eval_loss")
    assert all(name in caught.value.fix for name in METRICS)


@pytest.mark.parametrize(
    ("names", "best", "accepted"),
    [
        ((), "eval_loss", True),
        ((), "eval_perplexity", True),
        (("token_f1",), "eval_token_f1", True),
        (("token_f1",), "eval_exact_match", False),
        ((), "loss", False),
    ],
)
def test_the_best_model_is_chosen_by_what_is_computed(names: tuple[str, ...], best: str, accepted: bool) -> None:
    if accepted:
        check_metrics(names, best)
        return
    with pytest.raises(RecipeError, match=f"{best} is not computed") as caught:
        check_metrics(names, best)
    assert "eval_loss" in caught.value.fix
