"""The bytes of a local file, unpacked, and what its first bytes say about it."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from tunekit.errors import DataError

BOM = b"\xef\xbb\xbf"
# What a file of text cannot begin with, and what it is then.
OTHER_KINDS = {
    b"\x1f\x8b": ("packed with gzip", "Let its name end in .gz."),
    b"PAR1": ("a parquet file", "Let its name end in .parquet."),
    b"PK\x03\x04": ("a zip archive (or a spreadsheet)", "Unpack it, or export it as CSV."),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "Unpack it, or pack it with gzip."),
    b"\xff\xfe": ("UTF-16", "Save it as UTF-8."),
    b"\xfe\xff": ("UTF-16", "Save it as UTF-8."),
}


def suffix(file: Path) -> str:
    """The kind of a file by its name, without the .gz: "a.jsonl.gz" is ".jsonl"."""
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def byte_lines(file: Path) -> Iterator[bytes]:
    """The lines of a file, each with its line break; unpacks .gz and leaves out a byte order mark.

    Split at \\n only: str.splitlines also splits at U+2028 and others, which are legal inside JSON strings.
    Raises `DataError` where it is no file of text or cannot be read to its end, after the lines before that.
    """
    number = 0
    packed = file.name.endswith(".gz")
    try:
        with gzip.open(file, "rb") if packed else file.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                if number == 1:
                    _refuse_other_kinds(file, line)
                    line = line.removeprefix(BOM)
                yield line
    except EOFError as error:
        raise DataError(
            f"{file}: the gzip file is cut off after line {number}: its end is missing",
            "Fetch or write the file again, or unpack what is left of it (zcat) to keep these lines.",
        ) from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read{f' after line {number}' if number else ''}: {error}") from error


def _refuse_other_kinds(file: Path, line: bytes) -> None:
    for magic, (kind, fix) in OTHER_KINDS.items():
        if line.startswith(magic):
            raise DataError(f"{file}: the file is {kind}, not {suffix(file).removeprefix('.')} in UTF-8", fix)


def empty(file: Path) -> DataError:
    return DataError(f"{file}: the file is empty: it holds no row")


def not_utf8(raw: bytes) -> str:
    """The first byte of `raw` that is not UTF-8, and where it is."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8"
    raise AssertionError("the bytes are UTF-8")
