"""From rows to training data: the held-out part, the rule for over-long rows, the figures, the fingerprint."""

import hashlib
import logging
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunekit.data.render import possible_terminators, render_all
from tunekit.data.rows import Conversation, Text, Tokens
from tunekit.data.sources import first_problems
from tunekit.errors import DataError

log = logging.getLogger("tunekit")
T = TypeVar("T")

PERCENTILES = {"min": 0, "median": 50, "p90": 90, "p99": 99, "max": 100}


@dataclass(frozen=True)
class Summary:
    """What came of the rows. `lengths` in tokens are of the rows as rendered, `tokens` and `trained` of those kept.

    Over-long rows are `dropped` or `truncated`; a row that is cut until nothing in it is trained counts under both.
    `answers_cut` is the number of truncated rows that lost trained tokens.
    """

    rows: int
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


@dataclass(frozen=True)
class Prepared:
    """The rows to train on or to evaluate with, in the order of the source, and the ids that end their answers."""

    tokens: list[Tokens]
    summary: Summary
    terminators: frozenset[int]


def split(rows: Sequence[T], eval_split: float | int | None, seed: int) -> tuple[list[T], list[T]]:
    """`rows` as (train, held out), both in the order of `rows`; the same seed holds out the same rows.

    `eval_split` is a share (float), a number of rows (int, 0 for none) or None: a tenth, at most 100 rows. A share
    holds out at least one of two rows or more. Raises `DataError` where nothing would be left to train on.
    """
    count = _held_out(len(rows), eval_split)
    if count and count >= len(rows):
        raise DataError(
            f"data.eval_split: {eval_split} holds out {count} of {len(rows)} rows and leaves none to train on"
        )
    held_out = set(random.Random(seed).sample(range(len(rows)), count))
    return [row for i, row in enumerate(rows) if i not in held_out], [
        row for i, row in enumerate(rows) if i in held_out
    ]


def _held_out(num_rows: int, eval_split: float | int | None) -> int:
    if isinstance(eval_split, int):
        return eval_split
    if num_rows < 2:
        return 0
    count = max(1, round(num_rows * (0.1 if eval_split is None else eval_split)))
    return min(count, 100) if eval_split is None else count


def prepare(
    rows: Sequence[Conversation | Text],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    loss_on: str = "assistant",
    overlong: str = "error",
    system: str | None = None,
) -> Prepared:
    """Renders `rows` and applies the rule `overlong` (`error`, `drop`, `truncate`) to those over `max_length` tokens.

    Raises `DataError` for rows without a trained token, for over-long rows under `error`, and where no row is left.
    """
    rendered = render_all(rows, tokenizer, loss_on=loss_on, system=system)
    _refuse_untrained(rendered, loss_on)
    too_long = [row for row in rendered if len(row.ids) > max_length]
    if too_long and overlong == "error":
        _refuse_overlong(too_long, len(rendered), max_length)
    cut = [_cut(row, max_length) if overlong == "truncate" else row for row in rendered]
    kept = [row for row in cut if len(row.ids) <= max_length and row.trained.any()]
    answers_cut = sum(int(row.trained[max_length:].any()) for row in too_long) if overlong == "truncate" else 0
    if not kept:
        raise DataError(_nothing_left(rendered, max_length, overlong), "Raise data.max_length, or give shorter rows.")
    summary = Summary(
        rows=len(kept),
        tokens=sum(len(row.ids) for row in kept),
        trained=sum(int(row.trained.sum()) for row in kept),
        lengths=_lengths(rendered),
        overlong=len(too_long),
        dropped=len(rendered) - len(kept),
        truncated=len(too_long) if overlong == "truncate" else 0,
        answers_cut=answers_cut,
    )
    _say(summary, max_length)
    return Prepared(kept, summary, terminators(rendered, tokenizer))


def terminators(rows: Sequence[Tokens], tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The special tokens that end what is trained: the last one of each run of trained tokens. `rows` must be uncut."""
    special = list(possible_terminators(tokenizer))
    found: set[int] = set()
    for row in rows:
        at = np.flatnonzero(row.trained & np.isin(row.ids, special))
        run = np.cumsum(~row.trained)[at]
        found.update(row.ids[at[np.diff(run, append=-1) != 0]].tolist())
    return frozenset(found)


def fingerprint(tokens: Sequence[Tokens]) -> str:
    """sha256 over the ids and masks in order, as hex: equal only where the trained data is equal."""
    digest = hashlib.sha256()
    for row in tokens:
        # The length first, so that rows cannot trade tokens over their border.
        digest.update(len(row.ids).to_bytes(8, "little"))
        digest.update(row.ids.astype("<i4").tobytes())
        digest.update(row.trained.tobytes())
    return digest.hexdigest()


def _cut(row: Tokens, max_length: int) -> Tokens:
    return Tokens(row.ids[:max_length], row.trained[:max_length], row.source)


def _lengths(rows: Sequence[Tokens]) -> dict[str, int]:
    values = np.percentile([len(row.ids) for row in rows], list(PERCENTILES.values()), method="nearest")
    return {name: int(value) for name, value in zip(PERCENTILES, values, strict=True)}


def _refuse_untrained(rows: list[Tokens], loss_on: str) -> None:
    problems = [f"{row.source}: {len(row.ids)} tokens" for row in rows if not row.trained.any()]
    if problems:
        raise DataError(
            f"{len(problems)} of {len(rows)} rows have no trained token under data.loss_on: {loss_on}:\n"
            + first_problems(problems),
            'Take the rows out, or the "train": false of their answers, or change data.loss_on.',
        )


def _refuse_overlong(too_long: list[Tokens], num_rows: int, max_length: int) -> None:
    longest = max(len(row.ids) for row in too_long)
    problems = [f"{row.source}: {len(row.ids):,} tokens" for row in too_long]
    raise DataError(
        f"{len(too_long)} of {num_rows} rows are over data.max_length: {max_length}:\n{first_problems(problems)}",
        f"Set data.max_length: {longest} (the longest row), or data.overlong: drop or truncate.",
    )


def _nothing_left(rows: list[Tokens], max_length: int, overlong: str) -> str:
    if not rows:
        return "no rows to train on"
    return f"none of {len(rows)} rows is left after data.overlong: {overlong} at data.max_length: {max_length}"


def _say(summary: Summary, max_length: int) -> None:
    lengths = ", ".join(f"{name} {value:,}" for name, value in summary.lengths.items())
    log.info(
        "%s rows, %s tokens, %s trained (%.0f %%); length: %s (max_length %s)",
        f"{summary.rows:,}",
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
