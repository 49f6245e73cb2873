"""YAML text as plain values, with the place of each in the file.

Scalars follow the core schema of YAML 1.2.2 (section 10.3.2), by our own table: `1e-4` is a number, `no` is text, `010`
is ten. Tags, anchors and directives are refused, so a recipe can neither build objects nor multiply itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StreamMark, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

from tunekit.errors import RecipeError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
NEEDED = "A recipe needs at least the keys model, data and output_dir."
MAX_DIGITS = 400
KeyPath: TypeAlias = tuple[str | int, ...]

_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Place(NamedTuple):
    """Where a value stands: a line of a file, or an override (line 0). Lines and columns count from 1."""

    source: str
    line: int = 0
    column: int = 0
    key_line: int = 0
    key_column: int = 0

    @property
    def of_value(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source

    @property
    def of_key(self) -> str:
        return f"{self.source}:{self.key_line}:{self.key_column}" if self.line else self.source

    @property
    def origin(self) -> str:
        return f"{self.source}:{self.key_line}" if self.line else "override"


class Problem(NamedTuple):
    """One thing that is wrong; `at` is how the place is printed, `order` where it sorts."""

    path: KeyPath
    at: str
    order: tuple[int, int]
    message: str

    def __str__(self) -> str:
        return f"{self.at}: {dotted(self.path)}: {self.message}" if self.path else f"{self.at}: {self.message}"


@dataclass
class Document:
    """The values of a recipe as written, with the place of each and what is wrong with the YAML itself."""

    source: str
    value: Any
    places: dict[KeyPath, Place]
    problems: list[Problem] = field(default_factory=list)


def dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def scalar(text: str) -> Any:
    """The value of a plain scalar. A number too long to mean anything stays text."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if len(text) <= MAX_DIGITS:
        if _INTEGER.fullmatch(text):
            return int(text)
        if _BASED.fullmatch(text):
            return int(text[2:], 8 if text[1] == "o" else 16)
        if _FLOAT.fullmatch(text):
            return float(text)
    return float(text.replace(".", "").lower()) if _NOT_FINITE.fullmatch(text) else text


def read_text(path: str) -> str:
    """The text of a recipe file. Raises `RecipeError` if there is none, or if it is no short UTF-8 text."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        folder = Path(path).parent
        names = sorted(item.name for item in folder.iterdir() if item.is_file()) if folder.is_dir() else []
        close = get_close_matches(Path(path).name, names, 1)
        raise RecipeError(f"{path}: no such file", f"Did you mean {folder / close[0]}?" if close else "") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{path!r}: is not a file name: {error}") from None
    if len(raw) > MAX_BYTES:
        raise RecipeError(
            f"{path}: is larger than 1 MiB", "A recipe is a few lines of YAML; name the data by its path."
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise RecipeError(f"{path}:{line}:{column}: is not UTF-8 text", "Save the recipe as UTF-8.") from None


def parse(text: str, source: str) -> Document:
    """`text` as a document. Raises `RecipeError` with file, line and column where it is not YAML at all."""
    document = Document(source, None, {})
    try:
        _Builder(document, YAML(typ="safe", pure=True).parse(text)).build()
    except ReaderError as error:
        before = text[: error.position]
        at = f"{source}:{before.count(chr(10)) + 1}:{error.position - before.rfind(chr(10))}"
        raise RecipeError(f"{at}: the character U+{ord(text[error.position]):04X} is not allowed in YAML") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        if "'\\t'" in str(error.problem):
            raise RecipeError(
                f"{at}: a tab between or before keys", "YAML is laid out with spaces; replace the tab."
            ) from None
        fix = 'Put a value that holds ": " in quotes.' if "mapping values" in str(error.problem) else ""
        raise RecipeError(f"{at}: not valid YAML: {error.problem or error.context}", fix) from None
    except YAMLError as error:
        raise RecipeError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    return document


class _Builder:
    """Builds values from the parser's events, because events still show tags, anchors and repeated keys."""

    def __init__(self, document: Document, events: Iterator[Any]) -> None:
        self.document = document
        self.events = events

    def build(self) -> None:
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                if self.document.places:
                    raise self._fatal(event.start_mark, "a second document starts here; a recipe is one document")
                if event.version or event.tags:
                    raise self._fatal(event.start_mark, "a directive (%...) stands above this; remove it")
                self.document.value = self._value(next(self.events), (), None)
            elif isinstance(event, StreamEndEvent) and not self.document.places:
                raise RecipeError(f"{self.document.source}: is empty", NEEDED)

    def _fatal(self, mark: StreamMark, message: str) -> RecipeError:
        return RecipeError(f"{self.document.source}:{mark.line + 1}:{mark.column + 1}: {message}")

    def _value(self, event: Any, path: KeyPath, key: StreamMark | None) -> Any:
        mark, key = event.start_mark, key or event.start_mark
        place = Place(self.document.source, mark.line + 1, mark.column + 1, key.line + 1, key.column + 1)
        self.document.places[path] = place
        if len(path) > MAX_DEPTH:
            raise self._fatal(mark, f"nested more than {MAX_DEPTH} levels deep")
        self._refuse(event, path, place)
        if isinstance(event, ScalarEvent):
            if _SURROGATE.search(event.value):
                raise self._fatal(mark, r"half a character; write one beyond U+FFFF as itself or as \UXXXXXXXX")
            return scalar(event.value) if event.implicit[0] else event.value
        if isinstance(event, SequenceStartEvent):
            return self._sequence(path)
        return self._mapping(path) if isinstance(event, MappingStartEvent) else None

    def _refuse(self, event: Any, path: KeyPath, place: Place) -> None:
        found, tag = "", str(getattr(event, "tag", "")).replace("tag:yaml.org,2002:", "!!")
        if isinstance(event, AliasEvent):
            found = f"an alias (*{event.anchor}) is not accepted; write the value out"
        elif event.tag is not None:
            found = f"a tag ({tag}) is not accepted; write the plain value"
        elif event.anchor:
            found = f"an anchor (&{event.anchor}) is not accepted; remove it"
        if found:
            self.document.problems.append(Problem(path, place.of_value, (place.line, place.column), found))

    def _sequence(self, path: KeyPath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self._value(event, (*path, len(items)), None))
        return items

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            mark = event.start_mark
            if not isinstance(event, ScalarEvent) or not event.value.isprintable():
                raise self._fatal(mark, "a key must be one word of printable text")
            child = (*path, event.value)
            self._refuse(event, child, Place(self.document.source, mark.line + 1, mark.column + 1))
            first = self.document.places.get(child)
            value = self._value(next(self.events), child, mark)
            if first is None:
                items[event.value] = value
                continue
            at = f"{self.document.source}:{mark.line + 1}:{mark.column + 1}"
            message = f"is given twice, first in line {first.key_line}; remove one of the two"
            self.document.problems.append(Problem(child, at, (mark.line + 1, mark.column + 1), message))
            self.document.places[child] = first
        return items
