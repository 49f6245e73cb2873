"""What every source of rows can do, whatever it reads."""

import reprlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from tunekit.data.rows import Rejected

Row: TypeAlias = tuple[dict[str, Any], str]
Item: TypeAlias = Row | Rejected
SHOWN = 5

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 40


class RowSource(Protocol):
    """Rows with their places ("a.jsonl:12", "a.json[3]", "id[train][7]"); `name` is the path as the user wrote it."""

    @property
    def name(self) -> str: ...

    @property
    def places(self) -> Sequence[str]:
        """What the places of the rows begin with: the file, or the data set and its split."""
        ...

    def rows(self, start: int = 0) -> Iterator[Item]:
        """The items from number `start` on, in order, read as they are asked for; a row that cannot be read is
        `Rejected`. Raises `DataError` for what concerns a whole file."""
        ...

    def fingerprint(self) -> str:
        """sha256 as hex: equal only where the rows are, wherever they lie."""
        ...


def first_problems(problems: list[str]) -> str:
    """The first problems, one a line, and how many more there are."""
    more = [f"  ... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "\n".join([*(f"  {problem}" for problem in problems[:SHOWN]), *more])


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a table without the keys of its inner objects that are null.

    Arrow gives each object the keys of the same object in every other row: the arguments of a tool call those of all
    other calls.
    """
    return {key: _without_nulls(value) for key, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def shown(value: Any) -> str:
    """A value as an error shows it: short, however long or deep it is."""
    text = _repr.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
