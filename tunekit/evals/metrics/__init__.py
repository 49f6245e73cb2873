"""The metrics by name: those of one answer, and those of all answers together."""

from tunekit.evals.metrics import behaviour, classification, squad, text
from tunekit.evals.metrics.metric import METRICS, Answered, Metric

__all__ = ["METRICS", "Answered", "Metric", "behaviour", "classification", "squad", "text"]
