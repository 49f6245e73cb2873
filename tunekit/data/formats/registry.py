"""What a format is, and the formats there are."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from tunekit.data.rows import AnyRow

Row: TypeAlias = dict[str, Any]
Converter: TypeAlias = Callable[[Row, str], AnyRow]


@dataclass(frozen=True)
class Format:
    """A format: the keys a row must have (one of several sets) and may have, an example, and its converter.

    `convert(row, source)` raises `Refused`. `claims` looks at values where keys do not tell a format from another one;
    a value of None may be anything.
    """

    name: str
    needs: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    example: str
    claims: Callable[[Row], bool]
    convert: Converter

    @cached_property
    def keys(self) -> frozenset[str]:
        return frozenset(key for needed in self.needs for key in needed) | frozenset(self.optional)

    def missing(self, row: Row) -> tuple[str, ...]:
        """The keys that the row lacks, of the set that it comes nearest to."""
        lacking = [tuple(key for key in needed if row.get(key) is None) for needed in self.needs]
        return min(lacking, key=len)


FORMATS: dict[str, Format] = {}


def register(
    name: str,
    *needs: tuple[str, ...],
    example: str,
    optional: tuple[str, ...] = (),
    claims: Callable[[Row], bool] = lambda row: True,
) -> Callable[[Converter], Converter]:
    """Makes a function a format; detection asks in the order of registration."""

    def add(convert: Converter) -> Converter:
        FORMATS[name] = Format(name, needs, optional, example, claims, convert)
        return convert

    return add
