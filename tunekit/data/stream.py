"""Rows that are read and tokenised while training runs, in constant memory: a block of rows at a time.

A block is the next `buffer` rows of the sources, shuffled among themselves and cut into steps; rows that do not fill a
step go before the next block. So the whole state is where each source stood when the block began, the rows carried
over, and how many of the block's steps are done: a resumed run reads the block again and goes on with the same rows.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunekit.data.formats import Found
from tunekit.data.loader import LoadedStep
from tunekit.data.notes import note_growth, say_notes
from tunekit.data.plan import pack
from tunekit.data.prepare import OVERLONG_SHARE, check_kind
from tunekit.data.rejected import SHOWN, rejections
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Conversation, Rejected, Tokens
from tunekit.data.store import Rendered
from tunekit.data.tokenise import EXAMPLES, KINDS, Reading, rendered, sizes, terminators, with_format
from tunekit.errors import DataError

log = logging.getLogger("tunekit")


@dataclass(frozen=True)
class StreamSettings:
    """How rows become steps; the names are those of `Plan` and of the recipe's `data` section."""

    num_steps: int
    batch_size: int
    micro_batches: int
    max_length: int
    seed: int
    buffer: int
    overlong: str = "error"
    max_rejected: float = 0
    sampling: str = "random"
    packing: bool = False
    shares: tuple[float, ...] | None = None
    rank: int = 0
    world_size: int = 1


@dataclass
class Cursor:
    """Where a source stands: passes made, number of the next row, trained tokens given out."""

    turn: int = 0
    item: int = 0
    trained: int = 0


@dataclass
class Counts:
    """What became of the rows so far, each counted in the first pass over its source."""

    rows: int = 0
    rejected: int = 0
    overlong: int = 0
    answers_cut: int = 0


@dataclass
class _Block:
    """The state at the beginning of a block, and the steps of it that were given out since."""

    number: int = 0
    cursors: list[Cursor] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    carried: list[Tokens] = field(default_factory=list)
    done: int = 0


class StreamLoader:
    """A `Loader` over sources that are never held whole.

    `held_out` rows at the beginning of the first source are left out. With `shares`, the next row always comes from the
    source furthest behind its share of the trained tokens; without, the sources follow each other. `reject` is told of
    each rejected row. Raises `DataError` for a row that is not of `kind` (None: any), and where more rows are rejected
    or over-long than the settings accept.
    """

    def __init__(
        self,
        readings: Sequence[Reading],
        tokenizer: PreTrainedTokenizerBase,
        rendering: Rendering,
        settings: StreamSettings,
        held_out: int = 0,
        kind: str | None = None,
        reject: Callable[[Rejected], None] = lambda row: None,
    ) -> None:
        # The first rows decide the format, not those at which a resumed stream happens to begin.
        self._readings = [with_format(reading) for reading in readings]
        self.tokenizer, self.rendering, self.settings = tokenizer, rendering, settings
        self.held_out, self.kind, self.reject = held_out, kind, reject
        self.counts, self.notes, self._sizes = Counts(), Counter[str](), Counter[str]()
        self.terminators: frozenset[int] = frozenset()
        self.examples: list[Tokens] = []
        self.conversations: list[Conversation] = []
        self._rejections: list[Rejected] = []
        self._cursors = [Cursor(item=held_out if i == 0 else 0) for i in range(len(readings))]
        self._sources: dict[int, Iterator[tuple[int, Rendered | Rejected]]] = {}
        self._block = _Block()
        self._rows = self._read_block()
        self.examples = [self._rows[0], self._rows[-1]]
        self.report()

    @property
    def num_steps(self) -> int:
        return self.settings.num_steps

    def steps(self, start: int, poll: Callable[[], None] = lambda: None) -> Iterator[LoadedStep]:
        """The steps after `start`, which must be the one that the state belongs to."""
        number = start
        while number < self.num_steps:
            steps, rest = self._steps()
            for step in steps[self._block.done :][: self.num_steps - number]:
                number += 1
                self._block.done += 1
                yield LoadedStep(number, step[self.settings.rank :: self.settings.world_size], None, False)
            if number < self.num_steps:
                self._block = _Block(self._block.number + 1, carried=rest)
                self._rows = self._read_block()

    def longest(self, padded: bool) -> Sequence[Tokens]:
        """A micro-batch of rows that are all `max_length` tokens long, since the longest to come is not known."""
        ids = np.resize(self.examples[0].ids, self.settings.max_length)
        row = Tokens(ids, np.arange(len(ids)) > 0, self.examples[0].source)
        return [row] * self.settings.batch_size

    def report(self) -> dict[str, Any]:
        """What became of the rows so far; says what rendering changed in those read since the start or the resume."""
        note_growth(self.notes, self._sizes["tokens"], self._sizes["longest"])
        say_notes("data.streaming", self.notes, self._sizes["rows"])
        counts = asdict(self.counts)
        log.info("data.streaming: %s", ", ".join(f"{name} {count:,}" for name, count in counts.items()))
        return counts

    def state_dict(self) -> dict[str, Any]:
        carried = [(row.ids.tolist(), row.trained.tolist(), row.source, row.part) for row in self._block.carried]
        return {
            "number": self._block.number,
            "done": self._block.done,
            "carried": carried,
            "cursors": [asdict(each) for each in self._block.cursors],
            "counts": asdict(self._block.counts),
            "terminators": sorted(self.terminators),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        carried = [
            Tokens(np.array(ids, np.int32), np.array(trained, bool), source, part)
            for ids, trained, source, part in state["carried"]
        ]
        self._block = _Block(state["number"], carried=carried, done=state["done"])
        self._cursors = [Cursor(**each) for each in state["cursors"]]
        self.counts, self.terminators = Counts(**state["counts"]), frozenset(state["terminators"])
        for container in (self._sources, self._rejections, self.notes, self._sizes):
            container.clear()
        self._rows = self._read_block()

    def _steps(self) -> tuple[list[list[list[Tokens]]], list[Tokens]]:
        """The whole steps of the block, each a list of micro-batches, and the rows that are left over."""
        settings, rows = self.settings, self._rows
        packs: Sequence[Sequence[int]] = [(i,) for i in range(len(rows))]
        if settings.packing:
            packs = pack(range(len(rows)), [len(row.ids) for row in rows], settings.max_length)
        size = settings.batch_size * settings.micro_batches
        whole = len(packs) // size * size
        batches = [
            [rows[i] for each in packs[begin : begin + settings.batch_size] for i in each]
            for begin in range(0, whole, settings.batch_size)
        ]
        steps = [batches[i : i + settings.micro_batches] for i in range(0, len(batches), settings.micro_batches)]
        return steps, [rows[i] for each in packs[whole:] for i in each]

    def _read_block(self) -> list[Tokens]:
        """The rows carried over and the next `buffer` rows, shuffled; checks what was rejected and over-long so far."""
        self._block.cursors = [replace(each) for each in self._cursors]
        self._block.counts = replace(self.counts)
        rows: list[Tokens] = []
        while len(rows) < self.settings.buffer:
            rows += self._next(self._furthest_behind())
        self._check()
        if self.settings.sampling == "random":
            generator = np.random.default_rng([self.settings.seed, self._block.number, 0])
            rows = [rows[i] for i in generator.permutation(len(rows))]
        return self._block.carried + rows

    def _furthest_behind(self) -> int:
        shares, cursors = self.settings.shares, self._cursors
        if shares is None:
            return min(range(len(cursors)), key=lambda i: (cursors[i].turn, i))
        return min(range(len(cursors)), key=lambda i: cursors[i].trained / shares[i])

    def _next(self, part: int) -> list[Tokens]:
        """The token rows of the next row of a source, after the rule for over-long ones; begins anew at its end."""
        cursor = self._cursors[part]
        if part not in self._sources:
            self._sources[part] = self._numbered(part, cursor)
        made = next(self._sources[part], None)
        if made is None:
            del self._sources[part]
            if cursor.trained == 0:
                raise DataError(f"{self._readings[part].source.name}: no row of it can be trained on")
            cursor.turn, cursor.item = cursor.turn + 1, self.held_out if part == 0 else 0
            return []
        number, each = made
        cursor.item = number + 1
        if isinstance(each, Rejected):
            return self._rejected(each, first_pass=cursor.turn == 0)
        check_kind(each.row.source, KINDS[type(each.row)], self.kind)
        if isinstance(each.row, Conversation) and len(self.conversations) < EXAMPLES:
            self.conversations.append(each.row)
        rows = [row for tokens in each.tokens if (row := self._fitted(tokens, part, cursor.turn == 0)) is not None]
        self.counts.rows += cursor.turn == 0
        cursor.trained += sum(int(row.trained.sum()) for row in rows)
        return rows

    def _numbered(self, part: int, cursor: Cursor) -> Iterator[tuple[int, Rendered | Rejected]]:
        """The rows of a source from `cursor` on, each with its number.

        All ranks read all rows: they then go on from each other's checkpoints, however many they are.
        """
        rows = enumerate(self._readings[part].rows(Found(), cursor.item), start=cursor.item)
        first_pass = cursor.turn == 0
        for chunk in rendered(rows, self.tokenizer, self.rendering, self.notes if first_pass else Counter()):
            if first_pass:
                good = [each for _, each in chunk if isinstance(each, Rendered)]
                self._sizes.update(rows=len(chunk), **sizes(good))
                if self.rendering.loss_on != "all" or not self.terminators:
                    self.terminators |= terminators(good, self.tokenizer, self.rendering)
            yield from chunk

    def _rejected(self, row: Rejected, first_pass: bool) -> list[Tokens]:
        if first_pass:
            self.counts.rejected += 1
            self._rejections = [*self._rejections, row][-SHOWN:]
            self.reject(row)
            limit = self.settings.max_rejected
            if isinstance(limit, int) and self.counts.rejected > limit:
                self._refuse()
        return []

    def _fitted(self, tokens: Tokens, part: int, first_pass: bool) -> Tokens | None:
        """The row, cut to `max_length` where that is the rule; None where it is left out."""
        length = self.settings.max_length
        kept = Tokens(tokens.ids[:length], tokens.trained[:length], tokens.source, part)
        if len(tokens.ids) <= length:
            return kept
        if first_pass:
            self.counts.overlong += 1
            self.counts.answers_cut += bool(tokens.trained[length:].any())
        return kept if self.settings.overlong == "truncate" and kept.trained.any() else None

    def _check(self) -> None:
        counts, settings = self.counts, self.settings
        limit = settings.max_rejected
        if isinstance(limit, float) and counts.rejected > limit * (counts.rows + counts.rejected):
            self._refuse()
        if settings.overlong == "error" and counts.overlong > OVERLONG_SHARE * counts.rows:
            raise DataError(
                f"{counts.overlong:,} of the first {counts.rows:,} rows are over data.max_length: "
                f"{settings.max_length}; cut there, {counts.answers_cut:,} would lose part of an answer",
                "Raise data.max_length, or set data.overlong: drop or truncate.",
            )

    def _refuse(self) -> NoReturn:
        count = self.counts.rejected
        raise DataError(*rejections(self._rejections, count, self.counts.rows + count, self.settings.max_rejected))
