"""Rows that come twice, and held-out rows whose text is in the training rows. Reported, never removed: a short answer
may well be right twice, and texts of one domain share phrases.

An n-gram is 13 tokens in a row, the length that Brown et al. 2020 (arXiv:2005.14165, appendix C) look for. Those that
several held-out rows share (a system prompt, a table's header) say nothing about leakage and do not count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunekit.data.prepare import Rows

NGRAM = 13
MIN_SHARE = 0.5  # of a held-out row's own n-grams, from which on it counts as overlapping
SHOWN = 3
CHUNK = 1000
# Odd, so that no token vanishes from the hash modulo 2^64.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Overlap:
    """Counts, and examples as (place, place or share of its n-grams)."""

    duplicates: int
    exact: int
    ngram: int
    examples: dict[str, list[str]]


def find_overlap(train: Rows, held_out: Rows | None) -> Overlap:
    """Exact duplicates among `train`, and rows of `held_out` that are in it exactly, or by half of their n-grams."""
    examples: dict[str, list[str]] = {"duplicates": [], "exact": [], "ngram": []}
    values, first, inverse = np.unique(_digests(train), return_index=True, return_inverse=True)
    earlier, size = first[inverse], train.answers
    copies = np.flatnonzero(earlier != np.arange(len(earlier)))
    examples["duplicates"] = [
        f"{train.source(int(i) * size)} = {train.source(int(earlier[i]) * size)}" for i in copies[:SHOWN]
    ]
    if held_out is None:
        return Overlap(len(copies), 0, 0, examples)
    digests = _digests(held_out)
    exact = np.isin(digests, values)
    at = np.searchsorted(values, digests[exact])
    both = zip(np.flatnonzero(exact)[:SHOWN], first[at[:SHOWN]], strict=True)
    examples["exact"] = [f"{held_out.source(int(i) * size)} = {train.source(int(k) * size)}" for i, k in both]
    shares = ngram_shares(train, held_out).reshape(-1, size).max(axis=1)
    near = np.flatnonzero((shares >= MIN_SHARE) & ~exact)
    examples["ngram"] = [f"{held_out.source(int(i) * size)} ({shares[i]:.0%})" for i in near[:SHOWN]]
    return Overlap(len(copies), int(exact.sum()), len(near), examples)


def _digests(rows: Rows) -> NDArray[np.uint64]:
    """One for each row, or pair."""
    return rows.digests if rows.answers == 1 else rows.digests[::2] * _MULTIPLIER ^ rows.digests[1::2]


def sentences(overlap: Overlap) -> Iterator[str]:
    """What was found, a sentence for each thing that was; none where nothing was."""
    texts = {
        "duplicates": (overlap.duplicates, "training rows are copies of an earlier one"),
        "exact": (overlap.exact, "held-out rows are training rows too"),
        "ngram": (overlap.ngram, f"held-out rows have half of their {NGRAM}-grams in training rows"),
    }
    for key, (count, text) in texts.items():
        if count:
            yield f"{count:,} {text}, such as {'; '.join(overlap.examples[key])}"


def ngram_shares(train: Rows, held_out: Rows) -> NDArray[np.float64]:
    """Of each held-out row, the share of its own n-grams that some training row has; 0 where it has none (R,)."""
    grams, owners = ngrams([row.ids for row in held_out])
    values, owners = own_ngrams(grams, owners)
    seen = np.zeros(len(values), bool)
    for begin in range(0, len(train) if len(values) else 0, CHUNK):
        seen |= among(values, ngrams([train[i].ids for i in range(begin, min(begin + CHUNK, len(train)))])[0])
    return shares(owners, seen, len(held_out))


def own_ngrams(grams: NDArray[np.uint64], owners: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The n-grams, sorted, that one row alone has, and that row."""
    pairs = np.unique(np.stack([grams, owners.astype(np.uint64)]), axis=1)
    values, index, counts = np.unique(pairs[0], return_index=True, return_counts=True)
    return values[counts == 1], pairs[1][index[counts == 1]].astype(np.int64)


def among(values: NDArray[np.uint64], found: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of `values`, which are sorted, are among `found`."""
    seen = np.zeros(len(values), bool)
    if len(values):
        at = np.minimum(np.searchsorted(values, found), len(values) - 1)
        seen[at[values[at] == found]] = True
    return seen


def shares(owners: NDArray[np.int64], seen: NDArray[np.bool_], num_rows: int) -> NDArray[np.float64]:
    """Of each row, the share of its own n-grams that were seen; 0 where it has none (R,)."""
    total = np.bincount(owners, minlength=num_rows)
    return np.bincount(owners, seen, num_rows) / np.maximum(total, 1)


def ngrams(
    rows: Sequence[NDArray[np.integer[Any]]], length: int = NGRAM
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A hash of each n-gram within one of the rows of ids, and the number of that row; a shorter row has none."""
    owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    count = max(len(owners) - length + 1, 0)
    values = np.concatenate([*rows, np.zeros(0, np.int32)]).astype(np.uint64)
    hashes = np.zeros(count, np.uint64)
    for k in range(length):  # overflow is the modulo of the hash
        hashes = (hashes + values[k : k + count] + np.uint64(1)) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    inside = owners[:count] == owners[length - 1 : length - 1 + count]
    return hashes[inside], owners[:count][inside]
