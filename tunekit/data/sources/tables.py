"""CSV and TSV, a record at a time: a malformed one costs only the lines that it takes up."""

import csv
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

from tunekit.data.rows import Rejected
from tunekit.data.sources.contents import byte_lines, empty, not_utf8, suffix
from tunekit.data.sources.json_lines import UTF8
from tunekit.data.sources.source import Item
from tunekit.errors import DataError

# The csv module's own limit of 131,072 characters is met by long texts; without any, a quote that is never closed
# takes the rest of the file into memory.
LONGEST_FIELD = 1 << 26
DELIMITERS = {".csv": ",", ".tsv": "\t"}


class _Record(NamedTuple):
    """One record: the lines it takes up, its text, and its fields or why it has none."""

    begins: int
    ends: int
    text: str
    fields: list[str] | csv.Error


def read_table(file: Path, skip: int) -> Generator[Item, None, int]:
    """The rows after the first `skip`, named by the header; returns how many are left to skip in the next file."""
    records = (record for record in _records(file) if record.fields)
    first = next(records, None)
    if first is None:
        raise empty(file)
    header = _header(file, first)
    count = 0
    for count, record in enumerate(records, start=1):
        if count > skip:
            yield _row(file, header, record)
    if not count:
        raise DataError(f"{file}: the file is empty but for its header: {', '.join(header)}")
    return max(0, skip - count)


def _records(file: Path) -> Iterator[_Record]:
    csv.field_size_limit(LONGEST_FIELD)
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in byte_lines(file):
            taken.append(line.decode("utf-8", "surrogateescape"))
            yield taken[-1]

    reader = csv.reader(lines(), delimiter=DELIMITERS[suffix(file)], strict=True)
    begins = 1
    while True:
        fields: list[str] | csv.Error
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fields = error
        yield _Record(begins, reader.line_num, "".join(taken), fields)
        begins = reader.line_num + 1
        taken.clear()


def _header(file: Path, record: _Record) -> list[str]:
    problem = _problem(record)
    if isinstance(record.fields, csv.Error) or problem:
        raise DataError(f"{file}:{record.begins}: not {suffix(file)[1:].upper()}: {problem}")
    delimiter = DELIMITERS[suffix(file)]
    other = next((char for char in ";\t,|" if char in record.text), None)
    if len(record.fields) == 1 and other not in (None, delimiter):
        raise DataError(
            f"{file}:{record.begins}: the header is one column, {record.fields[0]!r}: is it separated by {other!r}?",
            "Separate the columns of a .csv by commas, of a .tsv by tabs.",
        )
    if any(name != name.strip() for name in record.fields):
        raise DataError(
            f"{file}:{record.begins}: the header has spaces around the name of a column: {record.fields}",
            "Remove the spaces beside the separators.",
        )
    # pandas writes its index under no name.
    header = [name or f"column {number}" for number, name in enumerate(record.fields, start=1)]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"{file}:{record.begins}: the header names a column twice: {', '.join(twice)}",
            "Give each column a name of its own. If the first line is a row, put a header line before it.",
        )
    return header


def _row(file: Path, header: list[str], record: _Record) -> Item:
    place = f"{file}:{record.begins}"
    problem = _problem(record)
    if isinstance(record.fields, csv.Error) or problem:
        raw = record.text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return Rejected(place, problem, raw.rstrip("\r\n"), UTF8 if "UTF-8" in problem else "")
    if len(record.fields) != len(header):
        reason = f"{len(record.fields)} fields, the header has {len(header)} ({', '.join(header)})"
        return Rejected(place, reason, record.text.rstrip("\r\n"), "Put fields that hold the separator into quotes.")
    return dict(zip(header, record.fields, strict=True)), place


def _problem(record: _Record) -> str:
    """Why the record cannot be read; empty where it can."""
    if isinstance(record.fields, csv.Error):
        lines = f"line {record.begins}" if record.begins == record.ends else f"lines {record.begins} to {record.ends}"
        if "unexpected end of data" in str(record.fields):
            return f"a quote is opened and never closed, so that {lines} cannot be read"
        return f"{record.fields}, in {lines}"
    raw = record.text.encode("utf-8", "surrogateescape")
    if raw.decode("utf-8", "ignore") != record.text:
        return not_utf8(raw)
    return f"byte {raw.index(0) + 1} is NUL" if 0 in raw else ""
