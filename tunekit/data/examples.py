"""Token rows as the examples that a stage trains on: plain rows, pairs of answers, labelled answers.

The examples of a kind are a sequence over the token rows on disk, which reads a row when it is asked for it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from tunekit.data.pairs import shared_prompt
from tunekit.data.prepare import Rows
from tunekit.data.rows import Example, Labelled, Pair, Preference, Tokens, Unpaired
from tunekit.errors import DataError


class Examples(Sequence[Example]):
    """`rows` as examples; `reference` (R, K), once it is set, are the reference's log-probabilities of each.

    K is 2: of pairs chosen and rejected, of labelled answers the answer and the mismatched one.
    """

    def __init__(self, rows: Rows, seed: int = 0) -> None:
        self.rows = rows
        self.reference: NDArray[np.float32] | None = None
        self._partners = _cycle(len(rows), seed) if rows.kind == "unpaired" else None

    def __len__(self) -> int:
        return len(self.rows) // self.rows.answers

    @overload
    def __getitem__(self, i: int) -> Example: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Example]: ...
    def __getitem__(self, i: int | slice) -> Example | Sequence[Example]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        if self.rows.kind == "pairs":
            return self._pair(i)
        return self._labelled(i) if self.rows.kind == "unpaired" else self.rows[i]

    def _pair(self, i: int) -> Pair:
        chosen, rejected = self.rows[2 * i], self.rows[2 * i + 1]
        row = self.rows.row(2 * i)
        assert isinstance(row, Preference)
        known = None if self.reference is None else (float(self.reference[i, 0]), float(self.reference[i, 1]))
        return Pair(chosen, rejected, shared_prompt(chosen, rejected), known, row.margin or 0.0)

    def _labelled(self, i: int) -> Labelled:
        assert self._partners is not None
        row, tokens = self.rows.row(i), self.rows[i]
        assert isinstance(row, Unpaired)
        known = None if self.reference is None else self.reference[i]
        others = _mismatched(tokens, self.rows[int(self._partners[i])], self.rows.max_length)
        return Labelled(
            tokens,
            row.label,
            None if known is None else (float(known[0]),),
            Labelled(others, row.label, None if known is None else (float(known[1]),)),
        )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over what is not in the tokens: labels, or margins; equal only where they are."""
        name = {"pairs": "margin", "unpaired": "label"}.get(self.rows.kind)
        facts = [getattr(self.rows.row(i), name) for i in range(0, len(self.rows), self.rows.answers)] if name else []
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, a prompt that two answers share counted twice (R,)."""
        return self._summed(self.rows.lengths)

    @property
    def trained(self) -> NDArray[np.int64]:
        """Trained tokens of each example (R,); a prompt, whose answer is not known yet, counts as one."""
        return np.ones(len(self), np.int64) if self.rows.kind == "prompts" else self._summed(self.rows.trained)

    @property
    def parts(self) -> NDArray[np.int64]:
        """Which source each example comes from (R,)."""
        return self.rows.parts[:: self.rows.answers]

    def _summed(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(values.reshape(-1, self.rows.answers).sum(axis=1))


def _cycle(count: int, seed: int) -> NDArray[np.int64]:
    """Of each of `count` rows another one, in one random cycle through all: no row is its own partner."""
    if count < 2:
        raise DataError(
            "there is one labelled answer: the KL divergence is estimated from answers to other prompts",
            "Give two rows or more, also held out.",
        )
    order = np.random.default_rng([seed, count]).permutation(count)
    partners = np.empty(count, np.int64)
    partners[order] = np.roll(order, 1)
    return partners


def _mismatched(row: Tokens, other: Tokens, max_length: int) -> Tokens:
    """The prompt of `row` with the answer of `other`, cut to `max_length`; at least one token of the answer is left."""
    prompt = row.ids[: int(row.trained.argmax())]
    begin = int(other.trained.argmax())
    room = max(1, max_length - len(prompt))
    ids = np.concatenate([prompt, other.ids[begin : begin + room]])
    trained = np.concatenate([np.zeros(len(prompt), bool), other.trained[begin : begin + room]])
    return replace(row, ids=ids, trained=trained)
