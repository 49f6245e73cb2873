"""From stores of token rows to training data: the held-out part, the rules for bad and over-long rows, the figures."""

import hashlib
import logging
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tunekit.data.rejected import SHOWN
from tunekit.data.rows import AnyRow, Tokens
from tunekit.data.store import Store
from tunekit.errors import DataError

log = logging.getLogger("tunekit")

PERCENTILES = {"min": 0, "median": 50, "p90": 90, "p99": 99, "max": 100}
COMMANDS = {
    "conversations": "Train on them with tunekit sft, or name the answers to compare with columns.",
    "pairs": "Train on them with tunekit dpo or reward; to learn the chosen answers, columns: {completion: chosen}.",
    "unpaired": "Train on them with tunekit kto.",
    "prompts": "Name the answers with columns, such as columns: {completion: answer}.",
}
OVERLONG_SHARE = 0.01  # of the rows: more are an error under `overlong: error`


@dataclass(frozen=True)
class Summary:
    """What came of the rows. `lengths` in tokens are as rendered, `tokens` and `trained` of those kept.

    `rows` are those of the data, `examples` what came of them: a pair is one, and a conversation is several where its
    template rewrites earlier turns. Over-long examples are `dropped` or `truncated`; one that is cut until nothing in
    it is trained counts under both. `answers_cut` is the number of truncated examples that lost trained tokens.
    """

    rows: int
    examples: int
    tokens: int
    trained: int
    lengths: dict[str, int]
    overlong: int
    dropped: int
    truncated: int
    answers_cut: int

    @property
    def trained_share(self) -> float:
        return self.trained / self.tokens


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Tokens]):
    """Token rows of several stores in an order of their own, cut to `max_length`; their figures are arrays (R,).

    parts, places: which store each comes from, and where in it;  items: which row of the data it was made from
    full_lengths: tokens as rendered;  trained: trained tokens within `max_length`;  digests: hashes of ids and mask
    """

    stores: Sequence[Store]
    max_length: int
    parts: NDArray[np.int64]
    places: NDArray[np.int64]
    items: NDArray[np.int64]
    full_lengths: NDArray[np.int64]
    trained: NDArray[np.int64]
    digests: NDArray[np.uint64]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        return np.minimum(self.full_lengths, self.max_length)

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, i: int) -> Tokens: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Tokens]: ...
    def __getitem__(self, i: int | slice) -> Tokens | Sequence[Tokens]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        row = self.whole(i)
        return Tokens(row.ids[: self.max_length], row.trained[: self.max_length], row.source, int(self.parts[i]))

    def whole(self, i: int) -> Tokens:
        """Row `i` before it was cut."""
        return self.stores[int(self.parts[i])][int(self.places[i])]

    def row(self, i: int) -> AnyRow:
        """What was read, from which row `i` was rendered."""
        return self.stores[int(self.parts[i])].row(int(self.places[i]))

    def source(self, i: int) -> str:
        return self.stores[int(self.parts[i])].source(int(self.places[i]))

    def some(self, chosen: NDArray[Any]) -> "Rows":
        """The rows at these numbers, or where a mask is true."""
        arrays = {each.name: getattr(self, each.name)[chosen] for each in fields(self)[2:]}
        return replace(self, **arrays)

    @property
    def kind(self) -> str:
        """`conversations`, `pairs` (chosen and rejected, in turn), `unpaired` or `prompts`."""
        return str(self.stores[int(self.parts[0])].report["kind"])

    @property
    def answers(self) -> int:
        """Token rows that stand or fall together: the two of a pair, else one."""
        return 2 if self.kind == "pairs" else 1


@dataclass(frozen=True)
class Prepared:
    """The rows to train on or to evaluate with, in the order of the sources."""

    tokens: Rows
    summary: Summary


def all_rows(stores: Sequence[Store], max_length: int) -> Rows:
    """Every row of the stores, which must be of one kind. Raises `DataError` where they are not, or have no row."""
    kinds = {store.report["kind"]: store.report["source"] for store in stores if len(store)}
    if len(kinds) > 1:
        named = ", ".join(f"{kind} ({source})" for kind, source in kinds.items())
        raise DataError(f"the sources hold rows of different kinds: {named}", "Train on one kind at a time.")
    if not kinds:
        raise DataError(f"{', '.join(store.report['source'] for store in stores)}: no row that can be used")
    rows = Rows(
        stores,
        max_length,
        parts=np.repeat(np.arange(len(stores)), [len(store) for store in stores]),
        places=np.concatenate([np.arange(len(store)) for store in stores]),
        items=np.concatenate([store.items + (part << 40) for part, store in enumerate(stores)]),
        full_lengths=np.concatenate([store.lengths for store in stores]).astype(np.int64),
        trained=np.concatenate([store.trained for store in stores]).astype(np.int64),
        digests=np.concatenate([store.digests for store in stores]),
    )
    for i in np.flatnonzero(rows.full_lengths > max_length).tolist():
        rows.trained[i] = int(rows[i].trained.sum())
    return rows


def check_kind(place: str, kind: str, wanted: str | None) -> None:
    """Raises `DataError` where the row at `place` is not of the kind that is trained on (None: any)."""
    if wanted not in (None, kind):
        raise DataError(
            f"{place}: the rows are {kind}, and this command takes {wanted}",
            COMMANDS[kind],
        )


def split(items: NDArray[np.int64], eval_split: float | int | None, seed: int) -> NDArray[np.bool_]:
    """Which rows are held out, as a mask; the same seed holds out the same. `items`: the row of the data of each (R,).

    `eval_split` is a share (float), a number of rows (int, 0 for none) or None: a tenth, at most 100 rows. A share
    holds out at least one of two rows or more. Raises `DataError` where nothing would be left to train on.
    """
    distinct = np.unique(items)
    count = _held_out(len(distinct), eval_split)
    if count and count >= len(distinct):
        raise DataError(
            f"data.eval_split: {eval_split} holds out {count} of {len(distinct)} rows and leaves none to train on"
        )
    return np.isin(items, distinct[random.Random(seed).sample(range(len(distinct)), count)])


def _held_out(num_rows: int, eval_split: float | int | None) -> int:
    if isinstance(eval_split, int):
        return eval_split
    if num_rows < 2:
        return 0
    count = max(1, round(num_rows * (0.1 if eval_split is None else eval_split)))
    return min(count, 100) if eval_split is None else count


def check_overlong(rows: Rows, overlong: str, context: int | None = None) -> None:
    """Raises `DataError` under `overlong: error` where more than 1 % of `rows` are over their `max_length`.

    `context`: the tokens that the model was made for, which is as far as `max_length` can be raised.
    """
    too_long = np.flatnonzero(_together(rows, rows.full_lengths > rows.max_length))[:: rows.answers]
    total = len(rows) // rows.answers
    if overlong != "error" or len(too_long) <= OVERLONG_SHARE * total:
        return
    lengths = [rows.full_lengths[i : i + rows.answers].max() for i in too_long[:SHOWN]]
    problems = [f"  {rows.source(int(i))}: {n:,} tokens" for i, n in zip(too_long, lengths, strict=False)]
    more = [f"  ... and {len(too_long) - SHOWN:,} more"] if len(too_long) > SHOWN else []
    cut = _answers_cut(rows)
    longest = int(rows.full_lengths.max())
    fits = context is None or longest <= context
    raise DataError(
        f"{len(too_long):,} of {total:,} rows ({len(too_long) / total:.1%}) are over data.max_length: "
        f"{rows.max_length}; cut there, {cut:,} would lose part of an answer:\n" + "\n".join([*problems, *more]),
        (f"Set data.max_length: {longest} (the longest row), or" if fits else "Set")
        + " data.overlong: drop or truncate.",
    )


def prepare(rows: Rows, overlong: str) -> Prepared:
    """Applies the rule `overlong` (`error` and `drop` leave over-long rows out, `truncate` cuts them) to `rows`.

    Raises `DataError` where no row is left.
    """
    too_long = _together(rows, rows.full_lengths > rows.max_length)
    truncates = overlong == "truncate" and rows.kind != "prompts"  # a prompt that is cut asks something else
    kept = ~too_long
    if truncates:
        kept = ~_together(rows, (rows.trained == 0) | _same_when_cut(rows, too_long))
    if not kept.any():
        raise DataError(
            f"none of {len(rows)} rows is left after data.overlong: {overlong} at data.max_length: {rows.max_length}",
            "Raise data.max_length, or give shorter rows.",
        )
    left = rows.some(kept)
    summary = Summary(
        rows=len(np.unique(left.items)),
        examples=len(left) // rows.answers,
        tokens=int(left.lengths.sum()),
        trained=int(left.trained.sum()),
        lengths=_lengths(rows.full_lengths),
        overlong=int(too_long.sum()) // rows.answers,
        dropped=int((~kept).sum()) // rows.answers,
        truncated=int(too_long.sum()) // rows.answers if truncates else 0,
        answers_cut=_answers_cut(rows) if truncates else 0,
    )
    _say(summary, rows.max_length)
    return Prepared(left, summary)


def _together(rows: Rows, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`mask`, true for both answers of a pair where it is for one."""
    return mask.reshape(-1, rows.answers).any(axis=1).repeat(rows.answers)


def _same_when_cut(rows: Rows, too_long: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pairs whose answers differ only beyond `max_length`: cut there, they prefer nothing."""
    same = np.zeros(len(rows), bool)
    for i in np.flatnonzero(too_long)[::2].tolist() if rows.kind == "pairs" else ():
        same[i] = np.array_equal(rows[i].ids, rows[i + 1].ids)
    return same


def _answers_cut(rows: Rows) -> int:
    """Rows that lose trained tokens when they are cut to their `max_length`."""
    cut = np.zeros(len(rows), bool)
    for i in np.flatnonzero(rows.full_lengths > rows.max_length).tolist():
        cut[i] = rows.whole(i).trained[rows.max_length :].any()
    return int(_together(rows, cut).sum()) // rows.answers


def fingerprint(tokens: Sequence[Tokens]) -> str:
    """sha256 over the ids and masks in order, as hex: equal only where the trained data is equal."""
    digest = hashlib.sha256()
    for row in tokens:
        # The length first, so that rows cannot trade tokens over their border.
        digest.update(len(row.ids).to_bytes(8, "little"))
        digest.update(row.ids.astype("<i4").tobytes())
        digest.update(row.trained.tobytes())
    return digest.hexdigest()


def _lengths(values: NDArray[np.int64]) -> dict[str, int]:
    found = np.percentile(values, list(PERCENTILES.values()), method="nearest")
    return {name: int(value) for name, value in zip(PERCENTILES, found, strict=True)}


def _say(summary: Summary, max_length: int) -> None:
    lengths = ", ".join(f"{name} {value:,}" for name, value in summary.lengths.items())
    became = f" ({summary.examples:,} examples)" if summary.examples != summary.rows else ""
    log.info(
        "%s rows%s, %s tokens, %s trained (%.0f %%); length: %s (max_length %s)",
        f"{summary.rows:,}",
        became,
        f"{summary.tokens:,}",
        f"{summary.trained:,}",
        100 * summary.trained_share,
        lengths,
        f"{max_length:,}" if max_length < sys.maxsize else "not limited",
    )
    if summary.overlong:
        log.warning(
            "%d rows over max_length: %d truncated (%d lost part of an answer), %d dropped",
            summary.overlong,
            summary.truncated,
            summary.answers_cut,
            summary.dropped,
        )
