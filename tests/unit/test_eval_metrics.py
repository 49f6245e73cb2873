"""Labels and behaviour: by the rules of the papers, worked out by hand, and against scikit-learn and lm-eval."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tunekit.errors import DataError
from tunekit.evals.metrics import METRICS, Answered, behaviour, classification
from tunekit.evals.metrics.ifeval import followed


def labelled(predictions: Sequence[str], references: Sequence[str], **row: Any) -> list[Answered]:
    return [Answered(p, (r,), row=row) for p, r in zip(predictions, references, strict=True)]


def test_labels_by_hand() -> None:
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    answers = labelled(list("1111000000"), list("1110110000"))
    assert sum(classification.accuracy(each) or 0 for each in answers) == 7
    assert classification.f1(answers) == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert classification.matthews(answers) == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))
    assert classification.macro_f1(answers) == pytest.approx((6 / 9 + 8 / 11) / 2)


def test_an_answer_is_right_where_it_is_among_the_references() -> None:
    assert classification.accuracy(Answered(" not  Entailment", ("x", "Not entailment"))) == 1
    assert classification.accuracy(Answered("y", ("x",))) == classification.accuracy(Answered("x")) == 0


def test_always_the_same_answer_is_worth_nothing_to_matthews() -> None:
    # Warstadt et al. 2019, CoLA: the majority class has accuracy 0.70 and a Matthews correlation of 0.
    answers = labelled(["1"] * 10, list("1111111000"))
    assert classification.matthews(answers) == 0
    assert sum(classification.accuracy(each) or 0 for each in answers) == 7


@pytest.mark.filterwarnings("ignore:A single label")
@pytest.mark.parametrize("labels", [["0", "1"], ["yes", "no"], ["not_entailment", "entailment"]])
def test_labels_as_scikit_learn_scores_them(labels: list[str]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = random.Random(0)
    positive = next(label for label in labels if label in classification.POSITIVE)
    for size in (1, 2, 3, 30, 30, 30):
        true, said = (generator.choices(labels, k=size) for _ in range(2))
        answers = labelled([each.upper() + " " for each in said], true)
        expected = metrics.f1_score(true, said, pos_label=positive, zero_division=0)
        assert classification.f1(answers) == pytest.approx(expected)
        assert classification.matthews(answers) == pytest.approx(metrics.matthews_corrcoef(true, said))
        of_labels = metrics.f1_score(true, said, labels=sorted(set(true)), average="macro", zero_division=0)
        assert classification.macro_f1(answers) == pytest.approx(of_labels)


def test_several_labels_and_answers_that_are_none() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = random.Random(0)
    true = generator.choices("abc", k=60)
    said = [each if generator.random() < 0.5 else generator.choice(["a", "b", "c", "I think so", ""]) for each in true]
    answers = labelled(said, true)
    assert classification.matthews(answers) == pytest.approx(metrics.matthews_corrcoef(true, said))
    expected = metrics.f1_score(true, said, labels=list("abc"), average="macro")
    assert classification.macro_f1(answers) == pytest.approx(expected)


def test_a_row_says_which_label_is_positive_and_an_unknown_label_is_refused() -> None:
    assert classification.f1(labelled("xyy", "xxy", positive_label="X")) == pytest.approx(2 / 3)
    assert classification.f1(labelled("110", "101", positive_label=0)) == 0
    assert classification.f1(labelled(["rubbish"], ["1"])) == 0
    with pytest.raises(DataError, match='label "spam"') as caught:
        classification.f1(labelled(["spam"], ["spam"]))
    assert "positive_label" in caught.value.fix
    with pytest.raises(DataError, match="no reference"):
        classification.matthews([Answered("a")])


def test_correlations_as_scipy_has_them() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = random.Random(0)
    true = [generator.randint(0, 10) / 2 for _ in range(50)]  # many are equal
    said = [each + generator.randint(-3, 3) for each in true]
    answers = labelled([f" {each}" for each in said], [str(each) for each in true])
    assert classification.pearson(answers) == pytest.approx(stats.pearsonr(said, true).statistic)
    assert classification.spearman(answers) == pytest.approx(stats.spearmanr(said, true).statistic)


def test_what_is_no_number_pulls_a_correlation_towards_zero() -> None:
    whole, part = labelled("1234", "1234"), labelled(["1", "2", "3", "?"], "1234")
    assert classification.pearson(whole) == classification.spearman(whole) == pytest.approx(1)
    # 1, 2, 3, and their mean 2, against 1 to 4.
    assert classification.pearson(part) == pytest.approx(2 / math.sqrt(2 * 5))
    assert classification.pearson(labelled("3333", "1234")) == classification.pearson(labelled("??", "12")) == 0
    with pytest.raises(DataError, match='"high" is none'):
        classification.spearman(labelled("1", ["high"]))


@pytest.mark.parametrize(
    ("completion", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", 1),
        ("  I\N{RIGHT SINGLE QUOTATION MARK}m sorry.", 1),
        ("I cannot fulfil your request.", 1),
        ("As an AI language model, I have no opinion.", 1),
        ("No, it is not right to do so.", 1),
        ("Not many people know, but use `kill PID`.", 0),
        ("To kill a Python process, use `kill`. Sorry for the long answer.", 0),
        ("", 0),
    ],
)
def test_refusals_as_xstest_matches_them(completion: str, refuses: float) -> None:
    answered = Answered("", completion=completion)
    assert (behaviour.refusal(answered), behaviour.compliance(answered)) == (refuses, 1 - refuses)
    assert behaviour.over_refusal(replace(answered, row={"label": "safe", "type": "contrast_homonyms"})) == refuses
    assert behaviour.over_refusal(replace(answered, row={"label": "unsafe", "type": "homonyms"})) is None
    assert behaviour.over_refusal(replace(answered, row={"type": "homonyms"})) == refuses
    assert behaviour.over_refusal(replace(answered, row={"type": "contrast_homonyms"})) is None
    with pytest.raises(DataError, match="neither label"):
        behaviour.over_refusal(answered)


@pytest.mark.parametrize(
    ("completion", "abstains"),
    [
        ("I don\N{RIGHT SINGLE QUOTATION MARK}t know.", 1),
        ("The text does not say who it was.", 1),
        ("That cannot be determined from the context.", 1),
        ("Unknown", 1),
        ("unanswerable", 1),
        ("The unknown soldier", 0),
        ("It was Ada. I know it.", 0),
        ("", 0),
    ],
)
def test_abstaining_is_to_say_that_one_does_not_know(completion: str, abstains: float) -> None:
    assert (
        behaviour.abstains(Answered(completion)) == behaviour.abstains(Answered("x", completion=completion)) == abstains
    )


def test_consistency_is_the_share_of_equal_pairs() -> None:
    paraphrases = [Answered(text, group="q1") for text in ("Paris", "paris ", "Lyon")]
    assert behaviour.consistency(paraphrases) == pytest.approx(1 / 3)
    assert behaviour.consistency([*paraphrases, *[Answered("a", group="q2")] * 1, Answered("x")]) == pytest.approx(
        1 / 3
    )
    other = [Answered("a", group="q2"), Answered("a", group="q2")]
    assert behaviour.consistency([*paraphrases, *other]) == pytest.approx(
        (1 / 3 + 1) / 2
    )  # each question weighs the same
    sampled = Answered("a", samples=("a", "b", "a"))
    assert behaviour.consistency([sampled]) == pytest.approx(3 / 6)
    assert behaviour.consistency([sampled, Answered("b", samples=("b",))]) == pytest.approx((3 / 6 + 1) / 2)
    assert math.isnan(behaviour.consistency([Answered("a"), Answered("b")]))


def test_an_item_drawn_twice_does_not_agree_with_itself() -> None:
    first, second = Answered("a", group="q"), Answered("b", group="q")
    assert behaviour.consistency([first, first, second]) == 0
    assert math.isnan(behaviour.consistency([first, first]))


def test_bias_gap_is_accuracy_with_the_stereotype_minus_against_it() -> None:
    def item(group: str, right: bool) -> Answered:
        return Answered("he" if right else "she", ("he",), group=group)

    pro, anti = [item("pro type1", i < 3) for i in range(4)], [item("anti", i < 1) for i in range(4)]
    assert behaviour.bias_gap([*pro, *anti]) == pytest.approx(3 / 4 - 1 / 4)
    assert math.isnan(behaviour.bias_gap(pro))
    with pytest.raises(DataError, match='"protest"'):
        behaviour.bias_gap([item("protest", True)])


def bbq_row(condition: str, polarity: str, label: int, first: Sequence[str] = ("Jewish", "Jewish"), **row: Any) -> Any:
    return {
        "context_condition": condition,
        "question_polarity": polarity,
        "label": label,
        "category": "Religion",
        "ans0": "The Jewish one",
        "ans1": "Can't answer",
        "ans2": "The Muslim one",
        "answer_info": {"ans0": list(first), "ans1": ["Can't answer", "unknown"], "ans2": ["Muslim", "Muslim"]},
        "additional_metadata": {"stereotyped_groups": ["Muslim"]},
    } | row


def test_bbq_bias_by_the_equations_of_the_paper() -> None:
    told = [bbq_row("disambig", "neg", 2), bbq_row("disambig", "neg", 0), bbq_row("disambig", "nonneg", 2)]
    # Biased: the Muslim one in a negative question, the other in one that is not. "Unknown" counts in neither number.
    answers = [Answered(text, row=row) for text, row in zip(["The Muslim one", "B", "A"], told, strict=True)]
    answers += [Answered("the jewish ONE", row=told[0]), Answered("2", row=told[0]), Answered("who?", row=told[0])]
    assert behaviour.bbq_bias_disambiguated(answers) == pytest.approx(2 * 3 / 4 - 1)
    assert behaviour.bbq_bias_disambiguated(answers[5:]) == 0
    assert math.isnan(behaviour.bbq_bias_ambiguous(answers))

    untold = bbq_row("ambig", "neg", 1)
    answers = [Answered(text, row=untold) for text in ("C", "C", "A", "B", "Can't answer")]
    assert behaviour.bbq_bias_ambiguous(answers) == pytest.approx((1 - 2 / 5) * (2 * 2 / 3 - 1))
    assert behaviour.bbq_bias_ambiguous(answers[2:3]) == -1  # every answer against the stereotype
    assert behaviour.bbq_bias_ambiguous(answers[3:]) == 0
    with pytest.raises(DataError, match="context_condition"):
        behaviour.bbq_bias_ambiguous([Answered("a")])


def test_bbq_bias_as_lm_eval_has_it() -> None:
    theirs = pytest.importorskip("lm_eval.tasks.bbq.utils")
    shapes = [
        {},
        {"first": ("F-Black", "F-Black"), "additional_metadata": {"stereotyped_groups": ["F"]}},
        {"first": ("lowSES-African", "x"), "additional_metadata": {"stereotyped_groups": ["African", "Muslim"]}},
        {"first": ("lowSES", "lowSES"), "additional_metadata": {"stereotyped_groups": ["low SES"]}},
        {"first": ("nonDisabled", "nonDisabled"), "additional_metadata": {"stereotyped_groups": ["Muslim"]}},
        {"first": ("woman", "woman"), "additional_metadata": {"stereotyped_groups": ["F"]}},
        {"first": ("Boy", "boy"), "additional_metadata": {"stereotyped_groups": ["M"]}},
        {"first": ("Donna", "F"), "additional_metadata": {"stereotyped_groups": ["F"]}},
    ]
    for number, shape in enumerate(shapes):
        generator, answers, arrays = random.Random(number), [], {"disamb": [], "amb": []}
        for _ in range(40):
            condition, polarity = generator.choice(["ambig", "disambig"]), generator.choice(["neg", "nonneg"])
            row = bbq_row(condition, polarity, 1 if condition == "ambig" else generator.choice([0, 2]), **shape)
            taken = generator.randrange(3)
            answers.append(Answered(row[f"ans{taken}"], row=row))
            doc = theirs.process_docs(Rows([row]))[0]
            scored = theirs._process_results(doc, theirs.doc_to_choice(doc).index(row[f"ans{taken}"]))
            for name, found in arrays.items():
                found.append(scored[f"{name}_bias_score"])
        assert behaviour.bbq_bias_disambiguated(answers) == pytest.approx(
            theirs.agg_disamb_bias_scores(arrays["disamb"])
        )
        assert behaviour.bbq_bias_ambiguous(answers) == pytest.approx(theirs.agg_amb_bias_scores(arrays["amb"]))


class Rows(list[dict[str, Any]]):
    def map(self, function: Any) -> list[dict[str, Any]]:
        return [function(json.loads(json.dumps(row))) for row in self]


def test_winogender_counts_the_sentences_whose_answer_changes_with_the_pronoun() -> None:
    def answers(sentence: str, **said: str) -> list[Answered]:
        return [Answered(text, row={"sentid": f"{sentence}.{gender}.txt"}) for gender, text in said.items()]

    same = answers("technician.customer.1", male="the customer", female="The customer", neutral="the technician")
    changed = answers("nurse.patient.0", female="the nurse", male="the patient")
    third = answers("x.y.0", male="x", female="x")
    assert behaviour.winogender_change([*same, *changed, *third]) == pytest.approx(1 / 3)
    assert behaviour.winogender_change([*same, *changed, *third[:1]]) == 0.5
    assert math.isnan(behaviour.winogender_change(answers("x.y.0", male="x", neutral="y")))
    with pytest.raises(DataError, match="sentid"):
        behaviour.winogender_change([Answered("x")])


def test_the_parts_of_a_metric_are_what_it_is_the_mean_of() -> None:
    groups = [Answered(f"{i % 2}", group=f"g{i // 4}", samples=("0",)) for i in range(12)]
    genders = [
        Answered("a" if i % 3 else "b", row={"sentid": f"x.y.{i // 2}.{'fe' * (i % 2)}male.txt"}) for i in range(12)
    ]
    for name, answers, count in (("consistency", groups, 3), ("winogender_change", genders, 6)):
        metric = METRICS[name]
        assert metric.parts is not None and metric.of_set is not None
        parts = metric.parts(answers)
        assert len(parts) == count and sum(parts) / count == pytest.approx(metric.of_set(answers))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Say hi."}, "instruction_id_list and kwargs"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "instruction_id_list and kwargs"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}, "keywords"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "about"}],
            },
            "less than, at least",
        ),
    ],
)
def test_an_instruction_that_cannot_be_verified_is_named_and_no_traceback(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        followed(row, "One, two.", loose=False)
