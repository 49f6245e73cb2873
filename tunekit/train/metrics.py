"""Metrics of the answers that a model writes during training: `eval.metrics` of a recipe."""

from collections.abc import Sequence
from statistics import fmean

from tunekit.evals.metrics.metric import Answered, ItemFunction
from tunekit.evals.metrics.text import exact_match, token_f1

METRICS: dict[str, ItemFunction] = {"exact_match": exact_match, "token_f1": token_f1}


def compute(names: Sequence[str], predictions: list[str], references: list[str]) -> dict[str, float]:
    """`{"eval_exact_match": 0.25, ...}` for the named metrics."""
    answers = [Answered(p, (r,)) for p, r in zip(predictions, references, strict=True)]
    return {f"eval_{name}": fmean(METRICS[name](each) or 0.0 for each in answers) for name in names}
