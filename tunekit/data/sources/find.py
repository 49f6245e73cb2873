"""From a path of a recipe to the source of its rows."""

import difflib
import glob
import hashlib
import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tunekit.data.sources.contents import suffix
from tunekit.data.sources.hub import find_on_hub
from tunekit.data.sources.json_document import read_json
from tunekit.data.sources.json_lines import read_json_lines
from tunekit.data.sources.memory import PREFIX, find_in_memory
from tunekit.data.sources.parquet import read_parquet
from tunekit.data.sources.source import Item, RowSource
from tunekit.data.sources.tables import read_table
from tunekit.errors import DataError, RecipeError
from tunekit.files import sha256

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
HELD_OUT = re.compile(r"(test|valid|validation|val|dev|eval)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Files:
    """The rows of local files, one file after the other; `field` is where they lie in a JSON file."""

    name: str
    files: tuple[Path, ...]
    field: str | None = None

    @property
    def places(self) -> list[str]:
        return [str(file) for file in self.files]

    def rows(self, start: int = 0) -> Iterator[Item]:
        for file in self.files:
            start = yield from self._read(file, start)

    def _read(self, file: Path, skip: int) -> Generator[Item, None, int]:
        if suffix(file) == ".json":
            return (yield from read_json(file, skip, self.field))
        readers = {".jsonl": read_json_lines, ".csv": read_table, ".tsv": read_table, ".parquet": read_parquet}
        return (yield from readers[suffix(file)](file, skip))

    def fingerprint(self) -> str:
        parts = [self.field, [(suffix(file), sha256(file)) for file in self.files]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def find(
    path: str,
    *,
    name: str | None = None,
    split: str | None = None,
    data_files: str | Sequence[str] | None = None,
    revision: str | None = None,
    field: str | None = None,
    datasets: Mapping[str, Any] | None = None,
) -> RowSource:
    """The source at `path`: a file, a folder, a pattern, `memory:NAME` in `datasets`, or a data set of the hub.

    Raises `DataError` (missing, or of a kind that is not read), `RecipeError` (a key that has no meaning there, a name
    that was not handed over) and `MissingEnvironment` (the hub cannot be reached).
    """
    hub = {"name": name, "split": split, "revision": revision}
    if path.startswith(PREFIX):
        _refuse_keys({**hub, "data_files": data_files, "field": field}, f"{path} is handed over from Python")
        return find_in_memory(path, datasets)
    local = Path(path).expanduser()
    if not local.exists() and not _looks_local(path):
        _refuse_keys({"field": field}, f"{path} is a data set of the hub")
        return find_on_hub(path, name, split, data_files, revision)
    _refuse_keys(hub, f"{path} is a local path")
    files = _local_files(local, path, data_files)
    for file in files:
        _check_kind(file, field)
    return Files(path, tuple(files), field)


def _refuse_keys(keys: Mapping[str, Any], because: str) -> None:
    for key, value in keys.items():
        if value is not None:
            raise RecipeError(f"data: {key}: {value} has no meaning here: {because}", f"Remove {key}.")


def _looks_local(path: str) -> bool:
    """A hub id is `name` or `owner/name`, may hold dots ("org/data-1.5") and does not end like a file ("a/b.jsonl")."""
    if glob.has_magic(path) or path.startswith((".", "/", "~")) or path.count("/") > 1:
        return True
    return re.search(r"\.[A-Za-z]\w*$", path) is not None


def _local_files(local: Path, path: str, data_files: str | Sequence[str] | None) -> list[Path]:
    if local.is_dir():
        return _in_folder(local, path, data_files)
    _refuse_keys({"data_files": data_files}, f"it chooses files of a folder, and {path} is none")
    if local.is_file():
        return [local]
    if local.exists():
        raise DataError(
            f"{path}: not a file but a pipe or a device, which can be read only once", "Write it to a file."
        )
    if not glob.has_magic(path):
        _missing(local, path)
    return _matching(str(local), None, path)


def _matching(pattern: str, folder: Path | None, said: str) -> list[Path]:
    """The files that a pattern matches, in order. Raises `DataError` where there are none."""
    names = glob.glob(pattern, root_dir=folder, recursive=True)
    files = sorted(file for name in names if (file := (folder or Path()) / name).is_file())
    if not files:
        _missing((folder or Path()) / pattern, said)
    return files


def _in_folder(folder: Path, path: str, data_files: str | Sequence[str] | None) -> list[Path]:
    if data_files is not None:
        patterns = [data_files] if isinstance(data_files, str) else data_files
        found = [file for pattern in patterns for file in _matching(pattern, folder, f"{path}/{pattern}")]
        return list(dict.fromkeys(found))
    files = sorted(file for file in folder.iterdir() if suffix(file) in SUFFIXES and file.is_file())
    if not files:
        inside = sorted({suffix(file) for file in folder.rglob("*") if file.is_file()} & set(SUFFIXES))
        deeper = [f"{path.rstrip('/')}/**/*{kind}" for kind in inside]
        fix = f"Name the files in the folders below it: path: {deeper[0]}" if deeper else ""
        raise DataError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file", fix)
    held_out = [file.name for file in files if HELD_OUT.match(file.name)]
    if held_out and len(held_out) < len(files):
        others = [file.name for file in files if file.name not in held_out]
        raise DataError(
            f"{path}: the folder holds {', '.join(held_out)} beside {', '.join(others)}; "
            "to read all of them would train on what is to be held out",
            f"Choose with data_files: {others[0]}",
        )
    return files


def _missing(local: Path, path: str) -> NoReturn:
    folder = local.parent
    while not folder.is_dir():
        folder = folder.parent
    entries = [entry.name for entry in folder.iterdir()]
    wanted = local.relative_to(folder).parts[0]
    near = difflib.get_close_matches(wanted, entries, n=3)
    where = f"near names in {folder}/: {', '.join(near)}" if near else f"{folder}/ holds nothing named like {wanted}"
    what = "no file matches the pattern" if glob.has_magic(path) else "no such file"
    raise DataError(f"{path}: {what} (current directory: {Path.cwd()}; {where})", "Correct data.train or data.eval.")


def _check_kind(file: Path, field: str | None) -> None:
    kind = suffix(file)
    if kind not in SUFFIXES:
        near = difflib.get_close_matches(kind, SUFFIXES, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{file}: files of type {kind or '(none)'} are not read{guess}",
            f"Accepted: {', '.join(SUFFIXES)}, and packed with gzip (.jsonl.gz). "
            'Plain text is written as rows, {"text": "..."}, one a line of a .jsonl.',
        )
    if kind == ".parquet" and file.name.endswith(".gz"):
        raise DataError(f"{file}: parquet is not read through gzip: it is compressed in itself", "Unpack it (gunzip).")
    if field is not None and kind != ".json":
        _refuse_keys({"field": field}, f"it is a key of a .json file, and {file} is none")
