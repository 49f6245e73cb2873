"""YAML text as plain values, with the place of each in the file.

Scalars follow the core schema of YAML 1.2.2 (section 10.3.2), by our own table: `1e-4` is a number, `no` is text, `010`
is ten. Tags, anchors and directives are refused, so a recipe can neither build objects nor multiply itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from tunekit.recipe.excerpt import Spot, excerpt, split_lines, spot_at
from tunekit.recipe.not_yaml import find_slip

MAX_DEPTH = 32
MAX_VALUES = 10_000
MAX_PROBLEMS = 50
SHARED = "write the value out, or share it between recipes with extends: FILE"
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
_NAME = re.compile(r"[\w-]+")  # of an anchor, as people write it
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Place(NamedTuple):
    """Where a value stands: a line of a file, or an override (line 0). Lines and columns count from 1."""

    source: str
    line: int = 0
    column: int = 0
    key_line: int = 0
    key_column: int = 0

    @property
    def of_value(self) -> Spot:
        return Spot(self.source, self.line, self.column)

    @property
    def of_key(self) -> Spot:
        return Spot(self.source, self.key_line, self.key_column) if self.line else Spot(self.source)

    @property
    def origin(self) -> str:
        return f"{self.source}:{self.key_line}" if self.line else "override"


class Problem(NamedTuple):
    """One thing that is wrong with the value at `path`."""

    path: KeyPath
    spot: Spot
    message: str

    def __str__(self) -> str:
        return f"{self.spot}: {dotted(self.path)}: {self.message}" if self.path else f"{self.spot}: {self.message}"


@dataclass
class Document:
    """The values of a recipe as written, with the place of each and what is wrong with the YAML itself.

    lines: of each file that it was read from, the recipe's own first
    """

    value: Any
    places: dict[KeyPath, Place]
    lines: dict[str, list[str]]
    problems: list[Problem] = field(default_factory=list)

    def report(self, problems: list[Problem]) -> str:
        """What is wrong in the order of the files, each with its line, those of overrides last."""
        files = list(self.lines)

        def order(problem: Problem) -> tuple[int, Spot]:
            source = problem.spot.source
            return files.index(source) if source in self.lines else len(files), problem.spot

        ordered = sorted(problems, key=order)
        said = [self.quote(problem.spot, str(problem)) for problem in ordered[:MAX_PROBLEMS]]
        more = [f"... and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        return "\n".join(said + more)

    def quote(self, spot: Spot, message: str) -> str:
        """The message, with the line that it is about if that is one of a file."""
        return message + excerpt(spot, self.lines.get(spot.source, []))


def dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def leaves(value: Any, path: KeyPath = (), *, whole_lists: bool = False) -> Iterator[tuple[KeyPath, Any]]:
    """Each single value (or empty list or section) inside `value`, with its path.

    whole_lists: a list of single values is one value
    """
    plain = whole_lists and isinstance(value, list) and value and not isinstance(value[0], dict)
    if plain or not value or not isinstance(value, (dict, list)):
        yield path, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(item, (*path, key), whole_lists=whole_lists)


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


def parse(text: str, source: str, *, quoted: bool = True, shared: str = SHARED) -> Document:
    """`text` as a document, whose messages quote its lines if `quoted`; `shared` is what to do instead of an alias.

    Raises `RecipeError` with file, line and column where it is not YAML at all.
    """
    document = Document(None, {}, {source: split_lines(text)} if quoted else {})
    try:
        _Builder(document, source, YAML(typ="safe", pure=True).parse(text), shared).build()
    except ReaderError as error:
        spot = spot_at(text, error.position, source)
        message = f"{spot}: the character U+{ord(text[error.position]):04X} is not allowed in YAML"
        raise RecipeError(document.quote(spot, message)) from None
    except MarkedYAMLError as error:
        slip = find_slip(error, text, source)
        raise RecipeError(document.quote(slip.spot, f"{slip.spot}: {slip.message}"), slip.fix) from None
    except YAMLError as error:
        raise RecipeError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    return document


class _Builder:
    """Builds values from the parser's events, because events still show tags, anchors and repeated keys."""

    def __init__(self, document: Document, source: str, events: Iterator[Any], shared: str) -> None:
        self.document = document
        self.source = source
        self.shared = shared
        self.num_values = 0
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
                raise RecipeError(f"{self.source}: is empty", NEEDED)

    def _fatal(self, mark: StreamMark, message: str) -> RecipeError:
        spot = self._spot(mark)
        return RecipeError(self.document.quote(spot, f"{spot}: {message}"))

    def _spot(self, mark: StreamMark) -> Spot:
        return Spot(self.source, mark.line + 1, mark.column + 1)

    def _value(self, event: Any, path: KeyPath, key: StreamMark | None) -> Any:
        empty = isinstance(event, ScalarEvent) and not event.value and event.implicit[0]
        # The parser puts nothing where the next thing begins, lines below.
        mark = key if empty and key else event.start_mark
        key = key or mark
        self.document.places[path] = Place(*self._spot(mark), key.line + 1, key.column + 1)
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise self._fatal(mark, f"more than {MAX_VALUES:,} values; a recipe is a few lines of YAML")
        if len(path) > MAX_DEPTH:
            raise self._fatal(mark, f"nested more than {MAX_DEPTH} levels deep")
        self._refuse(event, path)
        if isinstance(event, ScalarEvent):
            text = self._text(event)
            return scalar(text) if event.implicit[0] else text
        if isinstance(event, SequenceStartEvent):
            return self._sequence(path)
        return self._mapping(path) if isinstance(event, MappingStartEvent) else None

    def _text(self, event: ScalarEvent) -> str:
        if not _SURROGATE.search(event.value):
            return str(event.value)
        try:  # JSON writes a character beyond U+FFFF as two halves
            return str(event.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            message = r"half a character; write one beyond U+FFFF as itself or as \UXXXXXXXX"
            raise self._fatal(event.start_mark, message) from None

    def _refuse(self, event: Any, path: KeyPath) -> None:
        found, tag = "", str(getattr(event, "tag", "")).replace("tag:yaml.org,2002:", "!!")
        if isinstance(event, AliasEvent) and not _NAME.fullmatch(event.anchor):
            found = f"*{event.anchor} begins with *, which YAML takes for an alias; put it in quotes"
        elif isinstance(event, AliasEvent):
            found = f"an alias (*{event.anchor}) is not accepted; {self.shared}"
        elif event.tag is not None:
            found = f"a tag ({tag}) is not accepted; write the plain value"
        elif event.anchor:
            found = f"an anchor (&{event.anchor}) is not accepted; {self.shared}"
        if found and path[-1:] != ("<<",):
            self._problem(path, event.start_mark, found)

    def _problem(self, path: KeyPath, mark: StreamMark, message: str) -> None:
        self.document.problems.append(Problem(path, self._spot(mark), message))

    def _sequence(self, path: KeyPath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self._value(event, (*path, len(items)), None))
        return items

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            mark = event.start_mark
            if not isinstance(event, ScalarEvent) or not (name := self._text(event)).isprintable():
                raise self._fatal(mark, "a key must be one word of printable text")
            child = (*path, name)
            if name == "<<" and event.implicit[0]:
                self._problem(child, mark, f"a merge key is not accepted; {self.shared}")
            else:
                self._refuse(event, child)
            first = self.document.places.get(child)
            value = self._value(next(self.events), child, mark)
            if first is None:
                items[name] = value
                continue
            self._problem(child, mark, f"is given twice, first in line {first.key_line}; remove one of the two")
            self.document.places[child] = first
            if isinstance(value, dict) and isinstance(items[name], dict):
                items[name] = value | items[name]  # so that what only the second says is checked too
        return items
