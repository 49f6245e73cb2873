"""A rule of recipes that one breaks."""

from __future__ import annotations

from typing import NamedTuple


class Conflict(NamedTuple):
    """`message` is about the key `at`; `keys` are all that the rule looked at, dotted."""

    at: str
    keys: tuple[str, ...]
    message: str
