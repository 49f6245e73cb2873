"""JSON Lines: one object a line, each read on its own, so that a malformed one costs no other.

Here and not through Arrow, which unifies the schemas of all rows (a tool call gains the argument names of every other
call, as nulls) and does not name the malformed line.
"""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from tunekit.data.rows import Rejected
from tunekit.data.sources import strict_json
from tunekit.data.sources.contents import byte_lines, empty, not_utf8
from tunekit.data.sources.source import Item, shown
from tunekit.errors import DataError

UTF8 = "Save the file as UTF-8."
LIST = "If the file is one list of rows, let its name end in .json."


def read_json_lines(file: Path, skip: int) -> Generator[Item, None, int]:
    """The rows after the first `skip`, which are not parsed; returns how many are left to skip in the next file."""
    count = 0
    for number, line in enumerate(byte_lines(file), start=1):
        if line.isspace():
            continue
        count += 1
        if count == 1:
            _refuse_spread(file, line)
        if count > skip:
            yield _row(file, number, line)
    if not count:
        raise empty(file)
    return max(0, skip - count)


def not_an_object(value: Any) -> str:
    return f"expected an object with one row, {{...}}, found {shown(value)}"


def _refuse_spread(file: Path, first: bytes) -> None:
    if first.strip() in (b"[", b"{"):
        raise DataError(
            f"{file}: the file is one JSON value over several lines, and .jsonl is one object a line",
            "Let its name end in .json.",
        )


def _row(file: Path, number: int, line: bytes) -> Item:
    place = f"{file}:{number}"
    try:
        value = strict_json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Rejected(place, not_utf8(line), line.decode("utf-8", "backslashreplace").strip(), UTF8)
    except json.JSONDecodeError as error:
        return Rejected(place, _not_json(line, error), line.decode("utf-8").strip())
    except ValueError as error:
        return Rejected(place, str(error), line.decode("utf-8").strip())
    if not isinstance(value, dict):
        return Rejected(place, not_an_object(value), line.decode("utf-8").strip(), LIST)
    return value, place


def _not_json(line: bytes, error: json.JSONDecodeError) -> str:
    if b"\0" in line:
        return f"not JSON: byte {line.index(0) + 1} is NUL"
    # Only a line that nothing follows has no line break.
    cut = "" if line.endswith(b"\n") else "; the file ends here, so it may be cut off"
    return f"not JSON at column {error.colno}: {error.msg}{cut}"
