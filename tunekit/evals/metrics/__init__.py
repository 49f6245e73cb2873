"""The metrics by name: those of one answer, and those of all answers together."""

from tunekit.evals.metrics import behaviour, classification, code, ifeval, squad, text, tool_calls
from tunekit.evals.metrics.metric import METRICS, Answered, Metric

__all__ = [
    "METRICS",
    "Answered",
    "Metric",
    "behaviour",
    "classification",
    "code",
    "ifeval",
    "squad",
    "text",
    "tool_calls",
]
