"""`columns` of a recipe: our keys, each filled from a column of the rows or from a text with columns in braces."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tunekit.data.formats.detect import keys
from tunekit.data.formats.registry import FORMATS, Row
from tunekit.data.rows import Refused, Rejected
from tunekit.data.sources.source import Item, shown
from tunekit.errors import RecipeError

# Rows without a column after which the recipe is wrong and not the rows.
LOOK = 20

# Doubled braces, a column in braces, or a brace that is neither.
PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")
TEXTS = ("prompt", "completion", "text", "instruction", "input", "output", "system", "chosen", "rejected", "answer")


class UnknownColumn(Refused):
    """A row has no such column."""


class Columns:
    """The mapping of a recipe. Raises `RecipeError` where it names a key that no format has, or is no template."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        known = sorted({key for each in FORMATS.values() for key in each.keys})
        for key, column in columns.items():
            if key not in known:
                raise _no_key_of_ours(key, column, known)
        self._parts = {key: _parse(key, column) for key, column in columns.items()}
        self._paths = {path for parts in self._parts.values() for _, path in parts if path}

    def apply(self, row: Row) -> Row:
        """The row with our keys, without the columns that went into them. Raises `Refused`."""
        filled = {key: _fill(row, key, parts) for key, parts in self._parts.items()}
        taken = {path if path in row else path.partition(".")[0] for path in self._paths}
        return {key: value for key, value in row.items() if key not in taken} | filled

    def apply_to(self, items: Iterator[Item]) -> Iterator[Item]:
        """Each row with our keys, or `Rejected`. Raises `RecipeError` where none of the first rows has a column."""
        failed: list[tuple[UnknownColumn, str]] = []
        fits = False
        for item in items:
            if isinstance(item, Rejected):
                yield item
                continue
            row, source = item
            try:
                mapped = self.apply(row)
            except Refused as error:
                if isinstance(error, UnknownColumn) and not fits:
                    failed.append((error, source))
                    if len(failed) == LOOK:
                        break
                yield Rejected(source, error.reason, row, error.fix or "Correct the row, or what columns says.")
            else:
                fits = True
                yield mapped, source
        if failed and not fits:
            first, source = failed[0]
            raise RecipeError(f"data: {first.reason} ({source})", first.fix)


def _parse(key: str, template: str) -> list[tuple[str, str | None]]:
    """The texts of a template, each with the column after it. A name without braces is a column alone."""
    if "{" not in template and "}" not in template:
        return [("", template)]
    parts: list[tuple[str, str | None]] = []
    text, end = "", 0
    for found in PART.finditer(template):
        text += template[end : found.start()]
        end = found.end()
        if found[1] is not None:
            parts.append((text, found[1].strip()))
            text = ""
        elif len(found[0]) == 2:
            text += found[0][0]
        else:
            raise RecipeError(
                f"data: columns: {key}: {template}: a brace without its other one",
                "Write columns in braces, {question}, and a brace that is text twice, {{ or }}.",
            )
    return [*parts, (text + template[end:], None)]


def _fill(row: Row, key: str, parts: list[tuple[str, str | None]]) -> Any:
    if len(parts) == 1 and parts[0][1] is not None:  # a column alone, which may hold messages or a verdict
        path = parts[0][1]
        value = _look_up(row, path, key)
        return _text(value, path) if key in TEXTS and _is_number(value) else value
    return "".join(text + ("" if path is None else _text(_look_up(row, path, key), path)) for text, path in parts)


def _no_key_of_ours(key: str, column: str, known: list[str]) -> RecipeError:
    near = difflib.get_close_matches(key, known, n=1)
    if column in known:
        guess = f"; the other way round it would be {column}: {key}"
    else:
        guess = f"; did you mean {near[0]}?" if near else ""
    return RecipeError(
        f"data: columns: {key}: {column}: {key} is a key of no format{guess}",
        f"Accepted before the colon: {', '.join(known)}.",
    )


def _look_up(row: Row, path: str, key: str) -> Any:
    """The value under a path: a column, or "column.key.0" into objects and lists."""
    value: Any = row
    rest: str = path
    while rest:
        # A key may hold dots itself.
        step, rest = (rest, "") if isinstance(value, dict) and rest in value else rest.partition(".")[::2]
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise _unknown(row, value, step, path, key)
    return value


def _unknown(row: Row, value: Any, step: str, path: str, key: str) -> Refused:
    if isinstance(value, list):
        return Refused(f"columns: {key}: {path}: there is no {step} in a list of {len(value)}")
    if not isinstance(value, dict):
        return Refused(f"columns: {key}: {path}: there is no {step} in {shown(value)}")
    near = difflib.get_close_matches(step, value, n=1)
    guess = f"; did you mean {near[0]}?" if near else ""
    where = "the row" if value is row else path.removesuffix(f".{step}")
    return UnknownColumn(f"columns: {key}: {path}: {where} has no {step}{guess}", f"It has: {keys(value)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any, path: str) -> str:
    """A text, a number, or a list of these, one a line, as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if isinstance(value, list) and value:
        return "\n".join(_text(each, path) for each in value)
    raise Refused(f"the column {path} is {shown(value)}, and only texts and numbers can become part of a text")
