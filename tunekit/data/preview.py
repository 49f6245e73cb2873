"""Token rows as people and machines look at them: runs of given and trained text, and a histogram of lengths."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tunekit.data.rows import Tokens

BINS = 12


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
    """The runs of `row` in order; their texts together are all that the model sees, special tokens included."""
    borders = [0, *(np.flatnonzero(np.diff(row.trained)) + 1).tolist(), len(row.ids)]
    found, before = [], ""
    for begin, end in itertools.pairwise(borders):
        # Decoded from the start: a tokenizer may strip a space, or need the tokens before, at the beginning of a text.
        text = _text(tokenizer, row.ids[:end])
        found.append(Span(text[len(before) :], bool(row.trained[begin])))
        before = text
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
