"""Rows and the place each came from: local JSON Lines, JSON, CSV, TSV and parquet files, or a data set of the hub.

The only module that knows `datasets`. JSON and CSV are read here and not through Arrow: Arrow unifies the schemas of
all rows (a tool call gains the argument names of every other call, as nulls) and does not name the malformed line.
"""

import csv
import difflib
import glob
import gzip
import io
import json
import logging
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from tunekit.errors import DataError, MissingEnvironment, RecipeError

log = logging.getLogger("tunekit")

Row = tuple[dict[str, Any], str]
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SHOWN = 5


def read(
    path: str,
    *,
    name: str | None = None,
    split: str | None = None,
    data_files: str | list[str] | None = None,
    revision: str | None = None,
) -> list[Row]:
    """The rows of a file, a folder or a hub data set, each with its place ("a.jsonl:12", "a.json[3]", "id[train][7]").

    Raises `DataError` (missing, malformed or empty), `RecipeError` (a key that has no meaning for local files) and
    `MissingEnvironment` (the hub cannot be reached).
    """
    local = Path(path).expanduser()
    if not local.exists() and not _looks_local(path):
        return _read_hub(path, name, split, data_files, revision)
    for key, value in (("name", name), ("split", split), ("revision", revision)):
        if value is not None:
            raise RecipeError(
                f"data: {key}: {value} is for data sets of the hub, and {path} is a local path", f"Remove {key}."
            )
    rows: list[Row] = []
    for file in _local_files(local, path, data_files):
        rows += _read_file(file)
    return rows


def first_problems(problems: list[str]) -> str:
    """The first problems, one a line, and how many more there are."""
    more = [f"  ... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "\n".join([*(f"  {problem}" for problem in problems[:SHOWN]), *more])


def _looks_local(path: str) -> bool:
    """A hub id is `name` or `owner/name`, may hold dots ("org/data-1.5") and does not end like a file ("a/b.jsonl")."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or re.search(r"\.[A-Za-z]\w*$", path) is not None


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _local_files(local: Path, path: str, data_files: str | list[str] | None) -> list[Path]:
    if not local.exists():
        _missing(local, path)
    if local.is_file():
        if data_files is not None:
            raise RecipeError(
                f"data: data_files: {data_files} chooses files of a folder, and {path} is a file", "Remove data_files."
            )
        return [local]
    patterns = [data_files] if isinstance(data_files, str) else data_files
    if patterns is None:
        files = sorted(file for file in local.iterdir() if _suffix(file) in SUFFIXES)
        if not files:
            raise DataError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file")
        return files
    files = []
    for pattern in patterns:
        found = sorted(local / name for name in glob.glob(pattern, root_dir=local, recursive=True))
        if not found:
            _missing(local / pattern, f"{path}/{pattern}")
        files += found
    return files


def _missing(local: Path, path: str) -> NoReturn:
    folder = local.parent
    while not folder.is_dir():
        folder = folder.parent
    entries = [entry.name for entry in folder.iterdir()]
    wanted = local.relative_to(folder).parts[0]
    near = difflib.get_close_matches(wanted, entries, n=3)
    where = f"near names in {folder}/: {', '.join(near)}" if near else f"{folder}/ holds nothing named like {wanted}"
    raise DataError(
        f"{path}: no such file (current directory: {Path.cwd()}; {where})", "Correct data.train or data.eval."
    )


def _read_file(file: Path) -> list[Row]:
    readers: dict[str, Callable[[Path], list[Row]]] = {
        ".jsonl": _read_json,
        ".json": _read_json,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
    }
    suffix = _suffix(file)
    if suffix not in readers:
        near = difflib.get_close_matches(suffix, SUFFIXES, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{file}: files of type {suffix or '(none)'} are not read{guess}", f"Accepted: {', '.join(SUFFIXES)}."
        )
    rows = readers[suffix](file)
    if not rows:
        raise DataError(f"{file}: the file is empty: it holds no row")
    return rows


def _content(file: Path) -> bytes:
    try:
        raw = gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    return raw.removeprefix(b"\xef\xbb\xbf")


def _decode(raw: bytes, file: Path) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{file}:{line}:{column}: byte 0x{raw[error.start]:02x} is not UTF-8", "Save the file as UTF-8."
        ) from error


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"the literal {literal} is not JSON; write null or a number")


def _loads(text: str) -> Any:
    """The value of a JSON text. Raises `ValueError` with the reason, as `JSONDecodeError` where the place is known."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    # Half of a surrogate pair is legal JSON, but no tokenizer takes it; it would end the run later, without a place.
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("half of a surrogate pair (\\ud800 to \\udfff) stands alone") from error
    return value


def _not_an_object(value: Any) -> str:
    return f"expected an object with one row, {{...}}, found {json.dumps(value, ensure_ascii=False)[:40]}"


def _refuse(problems: list[str], num_rows: int, file: Path) -> None:
    if problems:
        raise DataError(f"{file}: {len(problems)} of {num_rows} rows cannot be read:\n{first_problems(problems)}")


def _read_json(file: Path) -> list[Row]:
    raw = _content(file)
    if _suffix(file) == ".json" and raw.lstrip()[:1] == b"[":
        return _json_array(_decode(raw, file), file)
    return _json_lines(raw, file)


def _json_array(text: str, file: Path) -> list[Row]:
    try:
        values = _loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error
    problems = [
        f"{file}[{i}]: {_not_an_object(value)}" for i, value in enumerate(values) if not isinstance(value, dict)
    ]
    _refuse(problems, len(values), file)
    return [(value, f"{file}[{i}]") for i, value in enumerate(values)]


def _json_lines(raw: bytes, file: Path) -> list[Row]:
    rows: list[Row] = []
    problems: list[str] = []
    # Split at \n only: str.splitlines also splits at U+2028 and others, which are legal inside JSON strings.
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = _loads(line.decode("utf-8").rstrip("\r"))
        except json.JSONDecodeError as error:
            problems.append(f"{file}:{number}:{error.colno}: not JSON: {error.msg}")
        except UnicodeDecodeError as error:
            problems.append(f"{file}:{number}:{error.start + 1}: byte 0x{line[error.start]:02x} is not UTF-8")
        except ValueError as error:
            problems.append(f"{file}:{number}: {error}")
        else:
            if isinstance(value, dict):
                rows.append((value, f"{file}:{number}"))
            else:
                problems.append(f"{file}:{number}: {_not_an_object(value)}")
    _refuse(problems, len(rows) + len(problems), file)
    return rows


def _read_csv(file: Path) -> list[Row]:
    # The limit of 131,072 characters a field is one of the csv module, not of the format; long texts pass it.
    csv.field_size_limit(sys.maxsize)
    text = io.StringIO(_decode(_content(file), file), newline="")
    reader = csv.reader(text, delimiter="\t" if _suffix(file) == ".tsv" else ",", strict=True)
    rows: list[Row] = []
    problems: list[str] = []
    header: list[str] | None = None
    for fields, number in _csv_records(reader, file):
        if header is None:
            header = fields
            if len(set(header)) < len(header) or "" in header:
                raise DataError(f"{file}:{number}: the header names a column twice or not at all: {', '.join(header)}")
        elif len(fields) != len(header):
            problems.append(
                f"{file}:{number}: {len(fields)} fields, the header has {len(header)} ({', '.join(header)})"
            )
        else:
            rows.append((dict(zip(header, fields, strict=True)), f"{file}:{number}"))
    _refuse(problems, len(rows) + len(problems), file)
    return rows


def _csv_records(reader: Any, file: Path) -> Iterator[tuple[list[str], int]]:
    """Each record that is not blank with the line on which it begins (a quoted field may hold line breaks)."""
    begins = 1
    try:
        for fields in reader:
            if fields:
                yield fields, begins
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{file}:{begins}: not CSV: {error}") from error


def _read_parquet(file: Path) -> list[Row]:
    import datasets  # two seconds that a run on JSON files need not wait

    # A cache of its own: the rows are held in memory, a second copy under ~/.cache would never be read again.
    with tempfile.TemporaryDirectory() as cache:
        try:
            rows = list(datasets.Dataset.from_parquet(str(file), cache_dir=cache))
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            cause = error.__cause__ or error
            raise DataError(f"{file}: cannot be read as parquet: {cause}") from error
    return [(row, f"{file}[{i}]") for i, row in enumerate(rows)]


def _read_hub(path: str, name: str | None, split: str | None, data_files: Any, revision: str | None) -> list[Row]:
    import datasets

    try:
        loaded = datasets.load_dataset(path, name, split=split, data_files=data_files, revision=revision)
    except FileNotFoundError as error:
        raise DataError(f"{path}: {error}", f"There is no file or folder {path} in {Path.cwd()} either.") from error
    except OSError as error:
        raise MissingEnvironment(
            f"{path}: no such file or folder in {Path.cwd()}, and the hub cannot be reached: {error}",
            "Give the path of a local file, or fetch the data set once where there is a network; it is cached then.",
        ) from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{path}: {error}", "Correct name, split, data_files or revision under data.") from error
    if split is None:
        split = _choose_split(path, list(loaded))
        loaded = loaded[split]
    rows = [(row, f"{path}[{split}][{i}]") for i, row in enumerate(loaded)]
    if not rows:
        raise DataError(f"{path}: the split {split} is empty")
    return rows


def _choose_split(path: str, splits: list[str]) -> str:
    if "train" not in splits and len(splits) > 1:
        raise DataError(f"{path}: no split named train; there are {', '.join(splits)}", "Set split under data.")
    split = "train" if "train" in splits else splits[0]
    log.info("%s: split %s (of %s)", path, split, ", ".join(splits))
    return split
