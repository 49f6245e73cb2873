"""The line that a message is about, with a caret under the column."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

MAX_WIDTH = 100
_BREAK = re.compile(r"\r\n|[\r\n]")  # what YAML 1.2 counts as the end of a line


class Spot(NamedTuple):
    """A character of a file, counted from 1; or an override, which has no line (0)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


def printable(text: str) -> str:
    """The text in one line, with what would move a cursor or not be seen escaped as YAML does it."""
    return "".join(char if char.isprintable() else f"\\U{ord(char):08X}" for char in text)


def split_lines(text: str) -> list[str]:
    return _BREAK.split(text)


def spot_at(text: str, offset: int, source: str) -> Spot:
    """The line and column of the character at `offset`."""
    *before, last = split_lines(text[:offset])
    return Spot(source, len(before) + 1, len(last) + 1)


def excerpt(spot: Spot, lines: list[str]) -> str:
    """A line feed, the line of `spot` beside its number, and a caret below; nothing where there is no such line."""
    if not 0 < spot.line <= len(lines):
        return ""
    line, column = _around(lines[spot.line - 1], spot.column - 1)
    number = f"{spot.line:5}"
    caret = " " * sum(map(_width, line[:column])) + "^"
    return f"\n{number} | {line}\n{' ' * len(number)} | {caret}"


def _around(line: str, column: int) -> tuple[str, int]:
    """At most `MAX_WIDTH` characters of the line with `column` among them, and where it is now."""
    # Shown as they are, these could move the cursor or change the terminal.
    line = "".join(char if char.isprintable() else "→" if char == "\t" else "\ufffd" for char in line.rstrip())
    start = max(0, min(column - MAX_WIDTH // 2, len(line) - MAX_WIDTH))
    shown, before = line[start : start + MAX_WIDTH], "..." if start else ""
    after = "..." if start + MAX_WIDTH < len(line) else ""
    return before + shown + after, len(before) + column - start


def _width(char: str) -> int:
    """Columns of a terminal that the character takes."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
