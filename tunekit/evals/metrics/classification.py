"""Labels and scores: the metrics of GLUE (Wang et al. 2019).

A label is compared without regard to case and white space. A prediction that is no label counts as a wrong one.
"""

import math
from collections import Counter
from collections.abc import Sequence

from tunekit.errors import DataError
from tunekit.evals.metrics.metric import Answered, item_metric, set_metric
from tunekit.evals.metrics.text import as_number, folded

POSITIVE = ("1", "yes", "true", "positive", "equivalent", "paraphrase", "duplicate", "entailment", "acceptable")
NEGATIVE = (
    *("0", "-1", "no", "false", "negative", "unacceptable", "different"),
    *("not equivalent", "not paraphrase", "not a paraphrase", "not duplicate", "not a duplicate", "not entailment"),
    *("not_equivalent", "not_paraphrase", "not_duplicate", "not_entailment"),
)


@item_metric("accuracy")
def accuracy(answered: Answered) -> float:
    """1 where the prediction is among the references."""
    return float(folded(answered.prediction) in map(folded, answered.references))


@set_metric("f1")
def f1(answers: Sequence[Answered]) -> float:
    """F1 of the positive label of two, as GLUE has it for mrpc and qqp; 0 where it is neither given nor predicted.

    Positive is what the row has as `positive_label`, else one of the words of `POSITIVE`. Raises `DataError` for a
    reference of which neither says what it is.
    """
    true = [_is_positive(_reference(each), each) for each in answers]
    predicted = [_is_positive(folded(each.prediction), each, must_be_known=False) for each in answers]
    return _f1(sum(t and p for t, p in zip(true, predicted, strict=True)), sum(true), sum(predicted))


@set_metric("macro_f1")
def macro_f1(answers: Sequence[Answered]) -> float:
    """The mean of F1 over the labels that are the reference of some item, each with the same weight."""
    true, predicted, correct = _counts(answers)
    return sum(_f1(correct[label], true[label], predicted[label]) for label in true) / len(true)


@set_metric("matthews")
def matthews(answers: Sequence[Answered]) -> float:
    """Matthews' correlation (GLUE's cola), for any number of labels (Gorodkin 2004); 0 where one side never varies."""
    true, predicted, correct = _counts(answers)
    n = len(answers)
    covariance = correct.total() * n - sum(true[label] * predicted[label] for label in true)
    spread = (n * n - sum(count**2 for count in true.values())) * (n * n - sum(c**2 for c in predicted.values()))
    return covariance / math.sqrt(spread) if spread else 0.0


@set_metric("pearson")
def pearson(answers: Sequence[Answered]) -> float:
    """Correlation of predicted and given numbers (GLUE's stsb); 0 where one side never varies.

    A prediction that is no number stands for the mean of the others, so that it pulls the correlation towards 0.
    """
    predicted, given = _numbers(answers)
    return _correlation(predicted, given)


@set_metric("spearman")
def spearman(answers: Sequence[Answered]) -> float:
    """Correlation of the ranks, equal numbers sharing theirs; else as `pearson`."""
    predicted, given = _numbers(answers)
    return _correlation(_ranks(predicted), _ranks(given))


def _reference(answered: Answered) -> str:
    if not answered.references:
        raise DataError("an item has no reference, and its metric compares with one", "Give the task an answer.")
    return folded(answered.references[0])


def _is_positive(label: str, answered: Answered, must_be_known: bool = True) -> bool:
    if (positive := answered.row.get("positive_label")) is not None:
        return label == folded(str(positive))
    if must_be_known and label not in POSITIVE + NEGATIVE:
        raise DataError(
            f'f1: is the label "{label}" the positive one? It is none of {", ".join(POSITIVE + NEGATIVE)}',
            "Give the rows a column positive_label, or take macro_f1.",
        )
    return label in POSITIVE


def _f1(correct: int, true: int, predicted: int) -> float:
    return 2 * correct / (true + predicted) if correct else 0.0


def _counts(answers: Sequence[Answered]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """How often each label is the reference, is predicted, and is both."""
    pairs = [(_reference(each), folded(each.prediction)) for each in answers]
    return Counter(t for t, _ in pairs), Counter(p for _, p in pairs), Counter(t for t, p in pairs if t == p)


def _numbers(answers: Sequence[Answered]) -> tuple[list[float | None], list[float | None]]:
    given = [as_number(_reference(each)) for each in answers]
    if None in given:
        text = answers[given.index(None)].references[0]
        raise DataError(f'a correlation needs numbers as references, and "{text}" is none')
    return [as_number(each.prediction) for each in answers], given


def _correlation(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    x, y = _deviations(first), _deviations(second)
    spread = math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / spread if spread else 0.0


def _deviations(values: Sequence[float | None]) -> list[float]:
    known = [value for value in values if value is not None]
    mean = math.fsum(known) / len(known) if known else 0.0
    return [0.0 if value is None else value - mean for value in values]


def _ranks(values: Sequence[float | None]) -> list[float | None]:
    below, ranks = 0, {}
    for value, count in sorted(Counter(value for value in values if value is not None).items()):
        ranks[value] = below + (count + 1) / 2
        below += count
    return [None if value is None else ranks[value] for value in values]
