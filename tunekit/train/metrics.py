"""Metrics of generated text, as `evaluate.Metric` classes of this package: nothing is fetched from a hub."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate


class ExactMatch(evaluate.Metric):
    """Share of predictions equal to their reference, white space at the ends and runs of it inside not counted."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        equal = [p.split() == r.split() for p, r in zip(predictions, references, strict=True)]
        return {"exact_match": sum(equal) / len(equal)}


class TokenF1(evaluate.Metric):
    """Mean F1 of the words that prediction and reference share (Rajpurkar et al. 2016, SQuAD), case folded."""

    def _info(self) -> evaluate.MetricInfo:
        return ExactMatch._info(self)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        scores = [_f1(p.lower().split(), r.lower().split()) for p, r in zip(predictions, references, strict=True)]
        return {"token_f1": sum(scores) / len(scores)}


METRICS: dict[str, Any] = {"exact_match": ExactMatch, "token_f1": TokenF1}


def compute(names: Sequence[str], predictions: list[str], references: list[str]) -> dict[str, float]:
    """`{"eval_exact_match": 0.25, ...}` for the named metrics."""
    scores: dict[str, float] = {}
    for name in names:
        scores |= METRICS[name]().compute(predictions=predictions, references=references)
    return {f"eval_{name}": score for name, score in scores.items()}


def _f1(predicted: list[str], reference: list[str]) -> float:
    remaining = list(reference)
    shared = 0
    for word in predicted:
        if word in remaining:
            remaining.remove(word)
            shared += 1
    return 2 * shared / (len(predicted) + len(reference)) if shared else float(predicted == reference)
