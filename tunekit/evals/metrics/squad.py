"""SQuAD's exact match and F1, by the rules of its scripts (Rajpurkar et al. 2016, 2018: evaluate-v1.1, evaluate-v2.0).

No reference, or an empty one, means that the question has no answer. The answer to it is empty, or "unanswerable".
"""

from tunekit.evals.metrics.metric import Answered, item_metric
from tunekit.evals.metrics.text import normalised, overlap


@item_metric("squad_em")
def squad_em(answered: Answered) -> float:
    """1 where the answer equals a reference but for case, punctuation, articles and white space."""
    prediction, references = _compared(answered)
    return float(prediction in references)


@item_metric("squad_f1")
def squad_f1(answered: Answered) -> float:
    """F1 of the words that the answer shares with the reference it is nearest to."""
    prediction, references = _compared(answered)
    return max(overlap(prediction.split(), each.split()) for each in references)


def _compared(answered: Answered) -> tuple[str, list[str]]:
    references = [text for each in answered.references if (text := normalised(each))] or [""]
    prediction = normalised(answered.prediction)
    if references == [""] and prediction == "unanswerable":
        prediction = ""
    return prediction, references
