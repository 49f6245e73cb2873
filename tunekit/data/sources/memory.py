"""Rows that a Python caller hands over under a name: a recipe says `memory:NAME`."""

import difflib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunekit.data.rows import Rejected
from tunekit.data.sources import strict_json
from tunekit.data.sources.source import Item, shown, without_nulls
from tunekit.errors import DataError, RecipeError

PREFIX = "memory:"


@dataclass(frozen=True)
class Memory:
    """`data` gives its rows each time it is iterated over; `is_table`: with the keys of every object in each."""

    name: str
    data: Any
    is_table: bool

    @property
    def places(self) -> list[str]:
        return [self.name]

    def rows(self, start: int = 0) -> Iterator[Item]:
        # A datasets.Dataset skips without making the rows.
        rest = self.data.skip(start) if hasattr(self.data, "skip") else itertools.islice(self.data, start, None)
        for number, row in enumerate(rest, start=start):
            yield _row(row, f"{self.name}[{number}]", self.is_table)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for row in self.data:
            digest.update(_written(row).encode() + b"\n")
        return digest.hexdigest()


def find_in_memory(path: str, datasets: Mapping[str, Any] | None) -> Memory:
    """Raises `RecipeError` where nothing, or nothing that holds rows, was handed over under the name."""
    given, name = datasets or {}, path.removeprefix(PREFIX)
    if name not in given:
        near = difflib.get_close_matches(name, given, n=1)
        guess = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        names = ", ".join(given) if given else "(none)"
        raise RecipeError(
            f"data: path: {path}: no data set of this name was handed over (there are: {names}){guess}",
            f"Call tunekit from Python with datasets={{{name!r}: rows}}, or give the path of a file.",
        )
    data = given[name]
    if isinstance(data, Mapping | str | bytes) or not hasattr(data, "__iter__"):
        keys = f" with the keys {', '.join(map(str, data))}" if isinstance(data, Mapping) else ""
        raise RecipeError(
            f"data: path: {path}: a {type(data).__name__}{keys} is not a list of rows",
            "Hand over a list of dicts or a datasets.Dataset, such as one split of it: data['train'].",
        )
    is_table = hasattr(data, "features") or hasattr(data, "iterrows")
    if hasattr(data, "iterrows"):  # a data frame, which iterates over the names of its columns
        data = [_plain(row) for row in data.astype(object).where(data.notna(), None).to_dict("records")]
    if iter(data) is data:  # used up after the first pass, and there are several
        data = list(data)
    if not any(True for _ in data):
        raise DataError(f"{path}: the data set is empty: it holds no row")
    return Memory(path, data, is_table)


def _plain(value: Any) -> Any:
    """The value of a data frame with lists in the place of its arrays."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _written(row: Any) -> str:
    try:
        return json.dumps(row, default=str)
    except (TypeError, ValueError, RecursionError):
        return shown(row)  # such a row is rejected


def _row(row: Any, place: str, is_table: bool) -> Item:
    if not isinstance(row, Mapping):
        return Rejected(place, f"expected a dict with one row, found {shown(row)}", row)
    if not all(isinstance(key, str) for key in row):
        return Rejected(place, f"the keys of a row must be strings, found {shown(list(row))}", str(row))
    try:
        strict_json.check(row)
    except (TypeError, ValueError, RecursionError) as error:
        return Rejected(place, f"cannot be written as JSON: {error}", shown(row))
    return without_nulls(dict(row)) if is_table else dict(row), place
