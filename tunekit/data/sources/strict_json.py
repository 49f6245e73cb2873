"""JSON without what the json module lets through: NaN, a key twice in an object, half of a surrogate pair."""

import json
import re
from typing import Any, NoReturn

# Deeper than any row of text, and far from where Python's own walks over a value end in a RecursionError.
MAX_DEPTH = 100
SURROGATE = re.compile(r"\\u[dD]")


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"the literal {literal} is not JSON; write null or a number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object, and the last would win")
    return value


# Made once: json.loads with options makes a decoder for every call.
DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)


def loads(text: str) -> Any:
    """The value of a JSON text. Raises `ValueError` with the reason, as `JSONDecodeError` where the place is known."""
    value, end = decode(text, len(text) - len(text.lstrip(" \t\r\n")))
    if text[end:].strip(" \t\r\n"):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def decode(text: str, begin: int) -> tuple[Any, int]:
    """The value that begins at `begin` and where it ends; raises as `loads` does."""
    try:
        value, end = DECODER.raw_decode(text, begin)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if text.count("{", begin, end) + text.count("[", begin, end) > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"nested too deeply: more than {MAX_DEPTH} levels")
    # Half of a surrogate pair is legal JSON, but no tokenizer takes it; it would end the run later, without a place.
    if SURROGATE.search(text, begin, end):
        refuse_half_pairs(value)
    return value, end


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth + 1):
        inner = [
            each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list | tuple)
        ]
        level = [item for items in inner for item in items]
        if not level:
            return False
    return True


def check(value: Any) -> None:
    """Raises `ValueError` (or what `json.dumps` raises) where a value from Python is none that `loads` would give."""
    refuse_half_pairs(value)  # and rings, of which the other check would see no end
    if _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"nested too deeply: more than {MAX_DEPTH} levels")


def refuse_half_pairs(value: Any) -> None:
    """Raises `ValueError` where a text in `value` cannot be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair (\\ud800 to \\udfff) stands alone") from error
