"""`tunekit preview`: what the model will see of the rows, and which of it is trained, before anything is trained."""

import io
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from tunekit.data.examples import Examples
from tunekit.data.overlap import find_overlap, sentences
from tunekit.data.prepare import Rows, prepare
from tunekit.data.preview import exact, histogram
from tunekit.errors import DataError, RecipeError, StorageError
from tunekit.recipe.load import Resolved
from tunekit.recipe.schema import Recipe
from tunekit.stages.base import find_base
from tunekit.stages.preflight import check_offline
from tunekit.stages.present import CONTROL_CHARACTERS
from tunekit.stages.read import Look, look, make_plan, shares_said
from tunekit.stages.rows import Datasets, reusable, shares_of

log = logging.getLogger("tunekit")

GIVEN, TRAINED = "dim", "bold green"
BAR = 40  # characters of the longest bar
OPEN, CLOSE = "⟦", "⟧"  # around trained text where there is no colour


def run(
    resolved: Resolved, *, count: int = 3, row: int | None = None, datasets: Datasets | None = None
) -> dict[str, Any]:
    """A report in JSON's types: `count` rows (0: all), or what came of `row`, counted from 1 in the order of the data.

    What is wrong with the data stands under `problems`, each with its message, and under `exit_code`. Raises
    `DataError` where there is nothing to look at, `RecipeError` for a `row` that there is not.
    """
    recipe = resolved.recipe
    datasets = reusable(datasets)
    check_offline(recipe, datasets)
    base = find_base(recipe)
    found = look(recipe, base, datasets)
    shown, part = _chosen(found, count, row)
    kept, problems = _kept(recipe, found)
    overlap = find_overlap(found.train, found.held_out)
    return {
        "kind": found.train.kind,
        "rows": [_exact(shown, i, base.tokenizer) | {"part": part} for i in range(len(shown))],
        "sources": [_source_report(store.report) for store in found.stores],
        "lengths": _lengths(found.train),
        "kept": kept,
        "held_out": 0 if found.held_out is None else len(found.held_out) // found.held_out.answers,
        "rejected": found.num_rejected,
        "overlap": asdict(overlap),
        "notes": [*sentences(overlap)],
        "problems": [str(problem) for problem in problems],
        "exit_code": problems[0].exit_code if problems else 0,
    }


def _chosen(found: Look, count: int, row: int | None) -> tuple[Rows, str]:
    if row is None:
        size = count * found.train.answers or len(found.train)
        return found.train.some(np.arange(min(size, len(found.train)))), "training"
    parts = {"training": found.train} | ({"held-out": found.held_out} if found.held_out else {})
    items = np.unique(np.concatenate([part.items for part in parts.values()]))
    if not 1 <= row <= len(items):
        raise RecipeError(f"--row {row}: the data has rows 1 to {len(items)}")
    for name, part in parts.items():
        if (mine := part.items == items[row - 1]).any():
            return part.some(mine), name
    raise AssertionError("an item is in one of the parts")


def _kept(recipe: Recipe, found: Look) -> tuple[dict[str, Any], list[DataError]]:
    """The figures of the training rows after the rule for over-long ones, and all that is wrong."""
    try:
        train = prepare(found.train, recipe.data.overlong)
    except DataError as error:
        return {}, [*found.problems, error]
    figures = {**asdict(train.summary), "trained_share": train.summary.trained_share}
    if shares_of(recipe) and not recipe.data.streaming:
        figures["shares"] = shares_said(recipe, make_plan(recipe, Examples(train.tokens, recipe.train.seed)))
    return figures, found.problems


def _exact(rows: Rows, i: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    name = ("chosen", "rejected")[i % 2] if rows.kind == "pairs" else "row"
    label = getattr(rows.row(i), "label", None)
    return {"name": name, **exact(rows[i], tokenizer)} | ({} if label is None else {"label": label})


def _source_report(report: dict[str, Any]) -> dict[str, Any]:
    kept = ("source", "format", "detected", "unused", "rows", "rejected", "notes")
    return {key: report[key] for key in kept}


def _lengths(rows: Rows) -> dict[str, Any]:
    limit = None if rows.max_length >= 1 << 60 else rows.max_length
    return {"max_length": limit, "histogram": [asdict(bar) for bar in histogram(rows.full_lengths)]}


def render(report: dict[str, Any], colour: bool) -> Iterator[Text]:
    """The report for people; without `colour`, trained text stands between brackets."""
    for source in report["sources"]:
        how = "detected" if source["detected"] else "given"
        yield Text(f"{source['source']}: {source['rows']:,} rows, format {source['format']} ({how})")
        for note, count in source["notes"].items():
            yield Text(f"  {count:,} {note}")
    for row in report["rows"]:
        yield Text()
        yield _heading(row)
        yield _body(row, colour)
    yield Text()
    yield from _figures(report)
    for problem in report["problems"]:
        yield Text(f"error: {problem}", style="red" if colour else "")


def _heading(row: dict[str, Any]) -> Text:
    label = "" if "label" not in row else f", label {str(row['label']).lower()}"
    name = "" if row["name"] == "row" else f" {row['name']}"
    counts = f"{len(row['ids']):,} tokens, {sum(row['trained']):,} trained"
    return Text(f"--- {row['source']}{name} ({row['part']}): {counts}{label}", style="bold")


def _body(row: dict[str, Any], colour: bool) -> Text:
    text = Text()
    for span in row["spans"]:
        shown = span["text"].translate(CONTROL_CHARACTERS)
        if colour:
            text.append(shown, style=TRAINED if span["trained"] else GIVEN)
        else:
            text.append(f"{OPEN}{shown}{CLOSE}" if span["trained"] else shown)
    return text


def _figures(report: dict[str, Any]) -> Iterator[Text]:
    lengths, kept = report["lengths"], report["kept"]
    yield Text(
        f"length in tokens, of the training rows as rendered (max_length {lengths['max_length'] or 'not limited'}):"
    )
    most = max(bar["rows"] for bar in lengths["histogram"])
    for bar in lengths["histogram"]:
        mark = " > max_length" if lengths["max_length"] and bar["low"] > lengths["max_length"] else ""
        filled = "#" * -(-bar["rows"] * BAR // most)
        yield Text(f"{bar['low']:>7,} to {bar['high']:>7,} {bar['rows']:>8,} {filled}{mark}")
    if kept:
        yield Text(
            f"training: {kept['rows']:,} rows, {kept['tokens']:,} tokens, {kept['trained']:,} trained "
            f"({kept['trained_share']:.0%}); held out: {report['held_out']:,}; rejected: {report['rejected']:,}"
        )
        yield Text(
            f"over max_length: {kept['overlong']:,} ({kept['dropped']:,} dropped, {kept['truncated']:,} truncated, "
            f"{kept['answers_cut']:,} lost part of an answer)"
        )
    if "shares" in kept:
        yield Text(f"shares of the trained tokens: {kept['shares']}")
    for note in report["notes"]:
        yield Text(note)


def write_html(report: dict[str, Any], path: str) -> None:
    """One page without scripts and without anything from elsewhere. Raises `StorageError`."""
    console = Console(file=io.StringIO(), record=True, width=120, force_terminal=True)
    for line in render(report, colour=True):
        console.print(line)
    try:
        Path(path).write_text(console.export_html(inline_styles=True), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"--html: {path}: cannot be written: {error.strerror}") from error
