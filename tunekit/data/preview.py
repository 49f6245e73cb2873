"""Token rows as people and machines look at them: runs of given and trained text, and a histogram of lengths."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tunekit.data.rows import Tokens

BINS = 12
CONTEXT = 16  # tokens: more than one character has
HALF = re.compile("\ufffd{1,3}\\Z")  # what the first tokens of a character are decoded as


@dataclass(frozen=True)
class Span:
    """A run of tokens that are all trained or all given, as text."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Bar:
    """How many rows are from `low` to `high` tokens long, both included."""

    low: int
    high: int
    rows: int


def spans(row: Tokens, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """The runs of `row` in order; their texts together are all that the model sees, special tokens included.

    A character of tokens in two runs is in the one where it ends. Each run is decoded with a few tokens before it, for
    a tokenizer may strip a space, or need the tokens before, at the beginning of a text.
    """
    borders = [0, *(np.flatnonzero(np.diff(row.trained)) + 1).tolist(), len(row.ids)]
    found = []
    for begin, end in itertools.pairwise(borders):
        first = max(0, begin - CONTEXT)
        before, text = (_text(tokenizer, row.ids[first:last]) for last in (begin, end))
        if end < len(row.ids):
            text = HALF.sub("", text)
        found.append(Span(text[len(HALF.sub("", before)) :], bool(row.trained[begin])))
    return found


def exact(row: Tokens, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The row as JSON values: ids, mask and text, so that two commits can be compared to the last token."""
    return {
        "source": row.source,
        "ids": row.ids.tolist(),
        "trained": row.trained.astype(int).tolist(),
        "text": _text(tokenizer, row.ids),
        "spans": [asdict(span) for span in spans(row, tokenizer)],
    }


def histogram(lengths: Sequence[int] | NDArray[np.int64]) -> list[Bar]:
    """Rows by length in bars of equal width, from the shortest row to the longest."""
    values = np.asarray(lengths)
    low, high = int(values.min()), int(values.max())
    width = max(1, -(-(high - low + 1) // BINS))
    counts = np.bincount((values - low) // width)
    return [Bar(low + i * width, low + (i + 1) * width - 1, int(count)) for i, count in enumerate(counts)]


def _text(tokenizer: PreTrainedTokenizerBase, ids: NDArray[np.int32]) -> str:
    return str(tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False))
