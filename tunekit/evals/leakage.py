"""Items of a task whose text is in the training data: word for word, or by half of their 13-grams.

Words are compared without case and punctuation (Brown et al. 2020, arXiv:2005.14165, appendix C). N-grams that several
items share (an instruction, a passage) say nothing and do not count. Found items are reported, and the score is given
without them too: texts of one domain share phrases, so that a person has to look.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tunekit.data.messages import strings
from tunekit.data.overlap import MIN_SHARE, NGRAM, among, ngrams, own_ngrams, shares
from tunekit.data.rows import AnyRow

MIN_WORDS = 6  # of a text that is looked for: shorter ones are said by chance
SHOWN = 5
CHUNK = 1000  # training rows that are looked at together
LENGTHS = range(MIN_WORDS, NGRAM + 1)
Located: TypeAlias = tuple[Mapping[str, Any], str]
Chunk: TypeAlias = list[tuple[NDArray[np.int32], str]]
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Leakage:
    """`flagged` are the numbers of the items found, `exact` and `ngram` how many; `short`: too short to tell."""

    flagged: tuple[int, ...]
    exact: int
    ngram: int
    short: int
    examples: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        facts = {"exact": self.exact, "ngram": self.ngram, "short": self.short, "examples": list(self.examples)}
        return {"items": len(self.flagged), **facts}


def find_leakage(sets: Sequence[Sequence[Located]], training: Iterable[AnyRow]) -> list[Leakage]:
    """What of each set of items, `(row, place)`, is in `training`, which is read once and never held."""
    words = _Words()
    searches = [_Search(items, words) for items in sets]
    words.grow = False
    for chunk in _chunks(training, words):
        for length in LENGTHS:
            grams, rows = ngrams([text for text, _ in chunk], length)
            for search in searches:
                search.looks[length].at(grams, rows, chunk)
    return [search.found() for search in searches]


class _Search:
    """The texts of the items of one task, looked for by all lengths."""

    def __init__(self, items: Sequence[Located], words: "_Words") -> None:
        self.places = [place for _, place in items]
        texts, self.owners = [], list[int]()
        for number, (row, _) in enumerate(items):
            mine = [text for text in map(words.of, strings(dict(row))) if len(text) >= MIN_WORDS]
            texts += mine
            self.owners += [number] * len(mine)
        self.looks = {length: _Look(texts, np.array(self.owners, np.int64), length) for length in LENGTHS}

    def found(self) -> Leakage:
        looks, places = self.looks.values(), self.places
        share = np.max([shares(each.owners, each.seen, len(places)) for each in looks], axis=0)
        exact = np.flatnonzero(share == 1).tolist()
        near = np.flatnonzero((share >= MIN_SHARE) & (share < 1)).tolist()
        first = {number: place for each in looks for number, place in each.places.items()}
        examples = tuple(
            f"{places[i]} in {first[i]}" + ("" if share[i] == 1 else f" ({share[i]:.0%} of its {NGRAM}-grams)")
            for i in [*exact, *near][:SHOWN]
        )
        short = len(places) - len(set(self.owners))
        return Leakage(tuple(sorted([*exact, *near])), len(exact), len(near), short, examples)


class _Look:
    """The n-grams of one length: texts of that many words whole, and for the greatest length those of longer ones."""

    def __init__(self, texts: Sequence[NDArray[np.int32]], owners: NDArray[np.int64], length: int) -> None:
        self.places: dict[int, str] = {}
        mine = [i for i, text in enumerate(texts) if len(text) == length or len(text) > length == NGRAM]
        grams, rows = ngrams([texts[i] for i in mine], length)
        self.values, self.owners = own_ngrams(grams, owners[mine][rows])
        self.seen = np.zeros(len(self.values), bool)

    def at(self, grams: NDArray[np.uint64], rows: NDArray[np.int64], chunk: Chunk) -> None:
        """`grams` are those of the texts of `chunk`, `rows` which text each is of."""
        new = among(self.values, grams) & ~self.seen
        self.seen |= new
        for i in np.flatnonzero(new).tolist():
            row = rows[np.flatnonzero(grams == self.values[i])[0]]
            self.places.setdefault(int(self.owners[i]), chunk[row][1])


class _Words:
    """Numbers for the words of the items; all words that no item has are one."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.grow = True

    def of(self, text: str) -> NDArray[np.int32]:
        words = _WORDS.findall(text.lower())
        if self.grow:
            found = [self.numbers.setdefault(word, len(self.numbers) + 1) for word in words]
        else:
            found = [self.numbers.get(word, 0) for word in words]
        return np.array(found, np.int32)


def _chunks(training: Iterable[AnyRow], words: _Words) -> Iterator[Chunk]:
    chunk: Chunk = []
    for row in training:
        read = {key: value for key, value in vars(row).items() if key != "source"}
        chunk += [(words.of(text), row.source) for text in strings(read)]
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    yield chunk
