"""An answer against the accepted texts: equal, equal as a number, or how much they share. The best reference counts."""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from tunekit.errors import MissingEnvironment
from tunekit.evals.metrics.metric import Answered, item_metric, set_metric

_NUMBER = re.compile(
    r"[$€£]?\s*(?P<sign>[-+]?)\s*[$€£]?\s*"
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)"
    r"(?:\s*/\s*(?P<divisor>\d+))?\s*\.?"
    r"(?:\s*%|(?:\s+[^\W\d]+){0,2})\.?"  # a unit: "12 apples", "3 square meters", "5 %"
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def folded(text: str) -> str:
    """One space for each run of white space, and no difference of case."""
    return " ".join(text.split()).casefold()


def normalised(text: str) -> str:
    """As SQuAD compares answers: lower case, without ASCII punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def overlap(predicted: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the words that two texts share, each as often as both have it; 1 where both are empty."""
    shared = sum((Counter(predicted) & Counter(reference)).values())
    return 2 * shared / (len(predicted) + len(reference)) if shared else float(predicted == reference)


def as_number(text: str) -> float | None:
    """ "1,000", "$12.50", "3/4", "12 apples" or "1e3" as a number; None for what is none, such as "1,5" or "3 or 4"."""
    match = _NUMBER.fullmatch(" ".join(text.split()))
    if match is None or (divisor := float(match["divisor"] or 1)) == 0:
        return None
    number = float(match["number"].replace(",", "")) / divisor
    return (-number if match["sign"] == "-" else number) if math.isfinite(number) else None


@item_metric("exact_match")
def exact_match(answered: Answered) -> float:
    """1 where prediction and reference are equal, white space at the ends and runs of it inside not counted."""
    return float(any(answered.prediction.split() == each.split() for each in answered.references))


@item_metric("exact_match_normalised")
def exact_match_normalised(answered: Answered) -> float:
    """1 where they are equal but for case, punctuation, articles and white space."""
    return float(any(normalised(answered.prediction) == normalised(each) for each in answered.references))


@item_metric("numeric")
def numeric(answered: Answered) -> float:
    """1 where they are equal as numbers, up to one in a million."""
    predicted = as_number(answered.prediction)
    accepted = [number for each in answered.references if (number := as_number(each)) is not None]
    return float(predicted is not None and any(math.isclose(predicted, each, rel_tol=1e-6) for each in accepted))


@item_metric("contains")
def contains(answered: Answered) -> float:
    """1 where the prediction has a reference in it, in whole words, whatever the case."""
    text = folded(answered.prediction)
    wanted = [folded(each) for each in answered.references]
    return float(any(re.search(rf"(?<!\w){re.escape(each)}(?!\w)", text) if each else not text for each in wanted))


@item_metric("token_f1")
def token_f1(answered: Answered) -> float:
    """F1 of the words that they share, case folded; `squad_f1` also leaves out punctuation and articles."""
    predicted = answered.prediction.lower().split()
    return max((overlap(predicted, each.lower().split()) for each in answered.references), default=0.0)


def _rouge(kind: str, answered: Answered) -> float:
    """F-measure of Lin's (2004) ROUGE by Google's package, without stemming."""
    if not answered.references:
        return 0.0
    return float(_scorer(kind).score_multi(answered.references, answered.prediction)[kind].fmeasure)


@lru_cache
def _scorer(kind: str) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing(kind, "rouge_score") from error
    return RougeScorer([kind])


for _kind in ("rouge1", "rouge2", "rougeL"):
    item_metric(_kind)(partial(_rouge, _kind))


def _corpus(name: str, answers: Sequence[Answered]) -> float:
    """sacrebleu's score of all answers together, from 0 to 100."""
    try:
        import sacrebleu
    except ImportError as error:
        raise _missing(name, "sacrebleu") from error
    score: Callable[..., Any] = getattr(sacrebleu, f"corpus_{name}")
    most = max(len(each.references) for each in answers) or 1
    # The n-th reference of each answer, None where it has fewer.
    references = [[(*each.references, *[None] * most)[n] for each in answers] for n in range(most)]
    return float(score([each.prediction for each in answers], references).score)


for _kind in ("bleu", "chrf"):
    set_metric(_kind)(partial(_corpus, _kind))


def _missing(metric: str, package: str) -> MissingEnvironment:
    return MissingEnvironment(f"metric {metric}: the package {package} is missing", 'pip install "tunekit[eval]"')
