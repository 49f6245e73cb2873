"""A .json file: a list of rows, rows under a key of an object, an object of rows, or JSON Lines under another name."""

import difflib
import itertools
import json
import logging
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tunekit.data.rows import Rejected
from tunekit.data.sources import strict_json
from tunekit.data.sources.contents import byte_lines, empty, not_utf8
from tunekit.data.sources.json_lines import UTF8, not_an_object, read_json_lines
from tunekit.data.sources.source import Item, shown
from tunekit.errors import DataError, RecipeError

log = logging.getLogger("tunekit")

LENIENT = json.JSONDecoder(parse_int=float)  # an int of more than 4,300 digits is an error
SPACE = re.compile(r"[ \t\r\n]*")


class _Member(NamedTuple):
    """A member of an array or object: its number or key, its text `[begin, end)`, its value or why it has none."""

    key: str | int
    begin: int
    end: int
    value: Any
    problem: ValueError | None


def read_json(file: Path, skip: int, field: str | None) -> Generator[Item, None, int]:
    """The rows after the first `skip`; returns how many are left to skip in the next file.

    A list is held as text, its rows are made one at a time. Raises `RecipeError` where `field` is not in the file.
    """
    if _holds_lines(file):
        if field is not None:
            raise RecipeError(
                f"data: field: {field}: {file} holds one object a line, each of them a row", "Remove field."
            )
        return (yield from read_json_lines(file, skip))
    text = b"".join(byte_lines(file)).decode("utf-8", "surrogateescape")
    if not text.strip():
        raise empty(file)
    count = 0
    try:
        for item in _rows(file, text, field):
            count += 1
            if count > skip:
                yield item
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error
    if not count:
        raise empty(file)
    return max(0, skip - count)


def _holds_lines(file: Path) -> bool:
    """Whether the first of several lines is JSON by itself, or broken before its end and not going on in the next."""
    lines = (line.decode("utf-8", "surrogateescape").strip() for line in byte_lines(file) if not line.isspace())
    first, second = next(lines, ""), next(lines, "")
    if first.startswith("[") or not second:
        return False
    try:
        LENIENT.decode(first)
    except json.JSONDecodeError as error:
        return error.pos < len(first)
    except RecursionError:
        pass
    return True


def _rows(file: Path, text: str, field: str | None) -> Iterator[Item]:
    begin = _skip_space(text, 0)
    if text[begin] == "[" and field is not None:
        raise RecipeError(f"data: field: {field}: {file} is itself the list of rows", "Remove field.")
    if text[begin] == "{":
        members = {str(member.key): member for member in _members(text, begin, outermost=True)}
        found = _find_rows(file, begin, members) if field is None else _find_field(file, text, members, field)
        if found is None:
            yield _row(f"{file}[0]", text, _member(text, 0, begin))
            return
        begin = found
    for member in _members(text, begin, outermost=field is None):
        yield _row(f"{file}[{member.key}]", text, member)


def _find_rows(file: Path, begin: int, members: dict[str, _Member]) -> int | None:
    """Where the list (or object) of rows begins in the object at `begin`; None: the object is a row itself."""
    values = {key: member.value for key, member in members.items()}
    if _is_rows(values):
        log.info("%s: an object of %d objects, each of them a row", file, len(values))
        return begin
    lists = {key: len(value) for key, value in values.items() if _is_rows(value)}
    if not lists:
        return None
    keys = ", ".join(f"{key} ({number} objects)" for key, number in lists.items())
    raise DataError(
        f"{file}: the file is one object and not a list of rows; keys of it that hold rows: {keys}",
        f"Set field: {next(iter(lists))} beside the path. If the object is one row, write it on one line of a .jsonl.",
    )


def _is_rows(value: Any) -> bool:
    """Whether it is a list of objects, or an object of at least two objects that have keys in common."""
    if isinstance(value, dict):
        inner = list(value.values())
        return len(inner) > 1 and all(isinstance(v, dict) for v in inner) and bool(set.intersection(*map(set, inner)))
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _find_field(file: Path, text: str, members: dict[str, _Member], field: str) -> int:
    key, _, inner = (field, "", "") if field in members else field.partition(".")
    if key not in members:
        near = difflib.get_close_matches(key, members, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(f"data: field: {field}: {file} has no key {key}{guess}", f"Its keys: {', '.join(members)}.")
    member = members[key]
    if inner and isinstance(member.value, dict):
        return _find_field(file, text, {str(m.key): m for m in _members(text, member.begin)}, inner)
    if inner or not (_is_rows(member.value) or isinstance(member.value, list)):
        raise RecipeError(f"data: field: {field}: {file} has no list of rows there, but {shown(member.value)}")
    return member.begin


def _members(text: str, begin: int, outermost: bool = False) -> Iterator[_Member]:
    """The members of the array or object that begins at `begin`, one at a time; nothing follows the `outermost` one.

    Raises `JSONDecodeError` where the text is no JSON, after the members before that.
    """
    closing = {"[": "]", "{": "}"}.get(text[begin])
    if closing is None:
        raise json.JSONDecodeError("Expecting a list or an object", text, begin)
    at = _skip_space(text, begin + 1)
    for number in itertools.count():
        if number == 0 and text.startswith(closing, at):
            break
        key: str | int = number
        if closing == "}":
            key, at = _key(text, at)
        member = _member(text, key, at)
        yield member
        at = _skip_space(text, member.end)
        if text.startswith(closing, at):
            break
        at = _expect(text, at, ",")
    if outermost and (rest := _skip_space(text, at + 1)) < len(text):
        raise json.JSONDecodeError("Extra data", text, rest)


def _member(text: str, key: str | int, begin: int) -> _Member:
    try:
        value, end = strict_json.decode(text, begin)
        return _Member(key, begin, end, value, None)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        # The text is JSON all the same, so that its end can be found and the rows after it read.
        try:
            value, end = LENIENT.raw_decode(text, begin)
        except RecursionError:
            raise json.JSONDecodeError("Nested too deeply", text, begin) from None
        return _Member(key, begin, end, value, error)


def _key(text: str, at: int) -> tuple[str, int]:
    """The key of a member and where its value begins."""
    if not text.startswith('"', at):
        raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
    key, end = LENIENT.raw_decode(text, at)
    return key.encode("utf-8", "backslashreplace").decode("utf-8"), _expect(text, end, ":")


def _skip_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()


def _expect(text: str, at: int, char: str) -> int:
    at = _skip_space(text, at)
    if not text.startswith(char, at):
        raise json.JSONDecodeError(f"Expecting {char!r} delimiter", text, at)
    return _skip_space(text, at + 1)


def _row(place: str, text: str, member: _Member) -> Item:
    raw = text[member.begin : member.end]
    if not raw.isascii():
        written = raw.encode("utf-8", "surrogateescape")
        try:
            written.decode("utf-8")
        except UnicodeDecodeError:
            return Rejected(place, not_utf8(written), written.decode("utf-8", "backslashreplace"), UTF8)
    if member.problem is not None:
        return Rejected(place, str(member.problem), raw)
    if not isinstance(member.value, dict):
        return Rejected(place, not_an_object(member.value), raw)
    return member.value, place
