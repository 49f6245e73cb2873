"""Rows of a source, in the one format they are in, as rows of `tunekit.data.rows`."""

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tunekit.data.formats.catalogue import FORMATS
from tunekit.data.formats.columns import Columns
from tunekit.data.formats.detect import detect, first_complete, keys, unknown
from tunekit.data.formats.registry import Format, Row
from tunekit.data.rows import AnyRow, Refused, Rejected
from tunekit.data.sources import Item
from tunekit.errors import RecipeError

# Rows to look at before rows in no known format end the run.
LOOK = 20


@dataclass
class Found:
    """What was found on the way: the format, whether from the rows, and the keys of rows that are not used."""

    format: str = ""
    detected: bool = False
    unused: set[str] = field(default_factory=set)


def convert(
    items: Iterable[Item],
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    found: Found | None = None,
) -> Iterator[AnyRow | Rejected]:
    """One row or `Rejected` for each item, in order and as they are asked for; what was rejected before stays so.

    Raises `RecipeError` for a format that does not exist and `columns` that do not fit the rows, and `DataError` where
    the first rows are in no known format.
    """
    if format != "auto" and format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(f"data: format: {format} is not a format{guess}", f"Accepted: auto, {', '.join(FORMATS)}.")
    given = None if format == "auto" else FORMATS[format]
    return _convert(iter(items), given, Columns(columns) if columns else None, found or Found())


def _convert(
    items: Iterator[Item], given: Format | None, columns: Columns | None, found: Found
) -> Iterator[AnyRow | Rejected]:
    mapped = columns.apply_to(items) if columns else items
    pending: list[Item] = []
    chosen = given
    for item in mapped:
        if isinstance(item, Rejected) and not pending:
            yield item
            continue
        pending.append(item)
        if not isinstance(item, Rejected):
            chosen = chosen or detect(item[0])
        if chosen or len(pending) == LOOK:
            break
    if not pending:
        return
    chosen = chosen or _in_doubt(pending)
    found.format, found.detected = chosen.name, given is None
    for item in itertools.chain(pending, mapped):
        yield item if isinstance(item, Rejected) else _convert_row(*item, chosen, found)


def _in_doubt(pending: list[Item]) -> Format:
    """The format of rows of which none is clearly in one: the first that has all its keys in some row."""
    rows = [item for item in pending if not isinstance(item, Rejected)]
    complete = (each for row, _ in rows if (each := first_complete(row)))
    chosen = next(complete, None)
    if chosen is None:
        raise unknown(*rows[0])
    return chosen


def _convert_row(row: Row, source: str, chosen: Format, found: Found) -> AnyRow | Rejected:
    for key in row.keys() - chosen.keys - found.unused:
        if row[key] is not None:
            found.unused.add(key)
    try:
        missing = chosen.missing(row)
        if missing:
            lacks = " and ".join(f"{key} is {'null' if key in row else 'missing'}" for key in missing)
            raise Refused(f"{lacks}; its keys are {keys(row)}")
        return chosen.convert(row, source)
    except RecursionError:
        return Rejected(source, "nested too deeply", row)
    except Refused as error:
        fix = error.fix or f"A row of the format {chosen.name} is {chosen.example}."
        return Rejected(source, error.reason, row, fix)
