"""The metrics of text, on answers that a person can score; in a recipe, and as classes of `evaluate`."""

import random
import sys
from pathlib import Path
from typing import get_args

import pytest

from tunekit.errors import MissingEnvironment, RecipeError
from tunekit.evals.metrics import METRICS, Answered, text
from tunekit.evals.metrics.hub import as_evaluate, hub_metric, value_of
from tunekit.evals.metrics.squad import squad_em, squad_f1
from tunekit.recipe.types import Metric
from tunekit.train.metrics import compute


def score(name: str, prediction: str, *references: str) -> float:
    return value_of(name, [Answered(prediction, references)])


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
        ("The CAT sat", "the cat SAT", 1),
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


@pytest.mark.parametrize(
    ("name", "prediction", "references", "value"),
    [
        ("exact_match_normalised", "The  Eiffel-Tower!", ["an eiffeltower"], 1),
        ("exact_match_normalised", "Eiffel Tower", ["Eiffel"], 0),
        ("contains", "It is in Paris, France.", ["paris"], 1),
        ("contains", "It is 15.", ["5"], 0),
        ("contains", "a  new\nyork", ["New York"], 1),
        ("contains", "C++ is used", ["c++"], 1),
        ("contains", "some text.", [""], 0),
        ("contains", "", [""], 1),
        ("exact_match", "b", ["a", "b"], 1),
        ("token_f1", "x y", ["z", "x w"], 0.5),
        ("exact_match", "a", [], 0),
        ("token_f1", "a", [], 0),
        ("rouge1", "a", [], 0),
    ],
)
def test_the_best_reference_counts(name: str, prediction: str, references: list[str], value: float) -> None:
    assert score(name, prediction, *references) == pytest.approx(value)


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("1,000", 1000),
        ("$1,234,567.50", 1234567.5),
        ("-$5", -5),
        ("€ 12", 12),
        ("3/4", 0.75),
        ("- 3 / 4", -0.75),
        (".5", 0.5),
        ("12.", 12),
        ("1e3", 1000),
        ("12 apples", 12),
        ("3 square metres.", 3),
        ("50 %", 50),
        ("1,5", None),  # a decimal comma, or two numbers
        ("1/0", None),
        ("3 or 4", None),
        ("twelve", None),
        ("12b", None),
        ("1e999", None),
        ("1" * 5000, None),
        ("1" + " " * 50_000 + "x1", None),
        ("", None),
    ],
)
def test_what_is_a_number(said: str, number: float | None) -> None:
    assert text.as_number(said) == number


def test_numbers_are_equal_up_to_one_in_a_million() -> None:
    assert score("numeric", "0.6666667", "2/3") == 1
    assert score("numeric", "0.66667", "2/3") == 0
    assert score("numeric", "1000.00", "7", "1,000 dollars") == 1
    assert score("numeric", "0", "0.0") == 1
    assert score("numeric", "none", "none") == 0


@pytest.mark.parametrize(
    ("prediction", "references", "em", "f1"),
    [
        # Rajpurkar et al. 2016, figure 1: where do water droplets collide with ice crystals to form precipitation?
        ("within a cloud", ["within a cloud"], 1, 1),
        ("Within the cloud.", ["within a cloud"], 1, 1),  # articles, case and punctuation do not count
        ("a cloud", ["within a cloud"], 0, 2 * 1 / (1 + 2)),
        ("in the clouds", ["within a cloud"], 0, 0),
        # Several references: the best counts.
        ("graupel", ["hail", "graupel", "graupel and hail"], 1, 1),
        ("graupel or hail", ["hail", "graupel", "graupel and hail"], 0, 2 * 2 / (3 + 3)),
        # Words count as often as both have them.
        ("the the no no no", ["no"], 0, 2 * 1 / (3 + 1)),
        ("well-known", ["well known"], 0, 0),  # punctuation goes without a space in its place
        ("rain\N{EM DASH}the\N{EM DASH}hail", ["rain\N{EM DASH} \N{EM DASH}hail"], 1, 1),  # an article with one
        ("1,000", ["1000"], 1, 1),
        ("", ["gravity"], 0, 0),
        # Rajpurkar et al. 2018: no answer is an empty one, and then it is all or nothing.
        ("", [], 1, 1),
        ("", [""], 1, 1),
        ("the", [""], 1, 1),  # normalised, it is empty
        ("gravity", [""], 0, 0),
        ("Unanswerable.", [""], 1, 1),
        ("unanswerable", [], 1, 1),
        ("unanswerable", ["gravity"], 0, 0),
        ("unanswerable", ["unanswerable"], 1, 1),
        ("gravity", ["", "gravity"], 1, 1),  # an empty reference beside others is left out
        ("", ["", "gravity"], 0, 0),
    ],
)
def test_squad_by_the_rules_of_its_scripts(prediction: str, references: list[str], em: float, f1: float) -> None:
    answered = Answered(prediction, tuple(references))
    assert (squad_em(answered), squad_f1(answered)) == pytest.approx((em, f1))


def test_squad_against_the_copy_of_its_script_in_lm_eval() -> None:
    theirs = pytest.importorskip("lm_eval.tasks.mlqa.utils")
    words = [
        "The",
        "a",
        "an",
        "cloud",
        "Cloud,",
        "ice-crystals",
        "1,000",
        "an.",
        "of",
        "(rain)",
        "it's",
        "  ",
        "théâtre",
    ]
    generator = random.Random(0)
    seen = set()
    for _ in range(500):
        prediction, *references = (" ".join(generator.choices(words, k=generator.randint(1, 5))) for _ in range(3))
        references = [each for each in references if theirs.normalize_answer(each, "en")] or ["cloud"]
        expected = theirs.process_results_lang({"answers": references}, [prediction], "en")
        answered = Answered(prediction, tuple(references))
        assert squad_em(answered) == expected["exact_match"]
        assert squad_f1(answered) == pytest.approx(expected["f1"])
        seen.add((expected["exact_match"], round(expected["f1"], 1)))
    assert len(seen) > 5


def test_rouge_by_hand() -> None:
    pytest.importorskip("rouge_score")
    # Lin 2004, section 3: "police killed the gunman" against two candidates.
    assert score("rougeL", "police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)
    assert score("rougeL", "the gunman kill police", "police killed the gunman") == pytest.approx(2 / 4)
    assert score("rouge2", "the gunman kill police", "police killed the gunman") == pytest.approx(1 / 3)
    assert score("rouge1", "the gunman", "police killed the gunman") == pytest.approx(2 * 2 / 6)
    assert score("rouge1", "the gunman", "police", "gunman the") == 1


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_bleu_and_chrf_as_lm_eval_has_them(name: str) -> None:
    pytest.importorskip("sacrebleu")
    theirs = getattr(pytest.importorskip("lm_eval.api.metrics"), name)
    pairs = [("the cat sat on the mat", "the cat is on the mat"), ("it rains cats and dogs", "it rains a lot of cats")]
    expected = theirs([(reference, prediction) for prediction, reference in pairs])
    assert 5 < expected < 95
    assert value_of(name, [Answered(p, (r,)) for p, r in pairs]) == pytest.approx(expected)
    more = [Answered(pairs[0][0], (pairs[0][1],)), Answered("it rains cats and dogs", ("x", "it rains cats and dogs"))]
    assert value_of(name, more) > expected  # not all have the same number of references


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("rouge_score.rouge_scorer", "sacrebleu"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in ("bleu", "rouge2"):
        text._scorer.cache_clear()
        with pytest.raises(MissingEnvironment, match=name) as caught:
            score(name, "a", "a")
        assert "tunekit[eval]" in caught.value.fix


def test_scores_of_a_recipe_are_means_over_the_rows_under_names_with_eval() -> None:
    found = compute(("exact_match", "token_f1"), ["a", "b c", "x"], ["a", "b d", "y"])
    assert found == pytest.approx({"eval_exact_match": 1 / 3, "eval_token_f1": 0.5})
    assert compute((), ["a"], ["b"]) == {}


def test_the_metrics_of_a_recipe_are_those_of_the_tasks() -> None:
    for name in get_args(Metric):
        assert compute((name,), ["a b"], ["a c"])[f"eval_{name}"] == score(name, "a b", "a c")


def test_metrics_as_classes_of_evaluate() -> None:
    import evaluate

    made = as_evaluate("token_f1")
    assert isinstance(made, evaluate.Metric)
    assert made.compute(predictions=["a b", "x"], references=["a c", "y"]) == {"token_f1": 0.25}
    assert made.compute(predictions=["a b", "x"], references=[["a c"], ["y", "x"]]) == {"token_f1": 0.75}
    assert as_evaluate("matthews").compute(predictions=["1", "0"], references=["1", "0"]) == {"matthews": 1}
    gap = as_evaluate("bias_gap").compute(predictions=["a", "b"], references=["a", "a"], groups=["pro", "anti"])
    assert gap == {"bias_gap": 1}
    rows = [{"label": "safe"}, {"label": "unsafe"}]
    safe = as_evaluate("over_refusal").compute(predictions=["Sorry", "Sorry"], references=["", ""], rows=rows)
    assert safe == {"over_refusal": 1}  # the unsafe prompt does not count
    batched = as_evaluate("exact_match")
    batched.add_batch(predictions=["a"], references=["a"])
    batched.add(prediction="a", reference="b")
    assert batched.compute() == {"exact_match": 0.5}
    with pytest.raises(RecipeError, match="did you mean exact_match"):
        as_evaluate("exactmatch")


def test_every_metric_is_a_class_of_evaluate_with_its_description() -> None:
    for name in METRICS:
        made = as_evaluate(name)
        assert made.name == {"rougeL": "rouge_l"}.get(name, name)
        assert len(made.description) > 20, name


def test_a_metric_of_the_hub_runs_from_its_script_and_says_what_is_missing(tmp_path: Path) -> None:
    script = tmp_path / "longer" / "longer.py"
    script.parent.mkdir()
    script.write_text(
        "import datasets\nimport evaluate\n\n"
        "class Longer(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        text = datasets.Value('string')\n"
        "        features = datasets.Features({'predictions': text, 'references': text})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=features)\n\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'longer': sum(len(p) > len(r) for p, r in zip(predictions, references))}\n"
    )
    assert hub_metric(str(script)).compute(predictions=["ab", "a"], references=["a", "a"]) == {"longer": 1}
    with pytest.raises(MissingEnvironment, match="no-such-metric") as caught:
        hub_metric("no-such-metric")
    assert "exact_match" in caught.value.fix
