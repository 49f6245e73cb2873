"""Tokenised rows on disk: written once, read through a memory map, so that data may be larger than memory.

A store is a folder: `rows.arrow` (an Arrow IPC file, a record batch for each chunk that was written), `rejected.jsonl`
(the rows that could not be used) and `report.json` (what came of them all, and the hashes of the three). What was read
stands beside the first of the token rows that came of it. A store is whole or not there; one that no longer has its
hashes is made again.
"""

import bisect
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tunekit.data.rows import AnyRow, Conversation, Preference, Prompt, Rejected, Text, Tokens, Unpaired
from tunekit.errors import StorageError
from tunekit.files import sha256

log = logging.getLogger("tunekit")

ROWS, REJECTED, REPORT = "rows.arrow", "rejected.jsonl", "report.json"
STAGING = ".tmp-"
ABANDONED = 24 * 60 * 60  # seconds
KINDS: dict[str, type] = {kind.__name__: kind for kind in (Conversation, Text, Preference, Unpaired, Prompt)}
SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),
        ("trained", pa.list_(pa.uint8())),
        ("num_trained", pa.int32()),
        ("item", pa.int64()),
        ("digest", pa.uint64()),
        ("source", pa.string()),
        ("row", pa.string()),
    ]
)


@dataclass(frozen=True)
class Rendered:
    """One row of the data, number `item` of its source, and the token rows that came of it."""

    item: int
    row: AnyRow
    tokens: Sequence[Tokens]


class Store(Sequence[Tokens]):
    """The token rows of a folder, and of each `lengths`, `trained` counts, `items`, content `digests` (all (R,))."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        reader = pa.ipc.open_file(pa.memory_map(str(folder / ROWS)))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()
        self.lengths = self._joined([np.diff(batch.column("ids").offsets.to_numpy()) for batch in self._batches])
        self.trained = self._column("num_trained")
        self.items = self._column("item")
        self.digests = self._column("digest")

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, i: int) -> Tokens: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Tokens]: ...
    def __getitem__(self, i: int | slice) -> Tokens | Sequence[Tokens]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        batch, k = self._place(range(len(self))[i])
        ids, trained = (batch.column(name) for name in ("ids", "trained"))
        begin, end = ids.offsets[k].as_py(), ids.offsets[k + 1].as_py()
        return Tokens(
            ids.values.to_numpy()[begin:end],
            trained.values.to_numpy()[begin:end].view(np.bool_),
            batch.column("source")[k].as_py(),
        )

    def row(self, i: int) -> AnyRow:
        """What was read, from which token row `i` was rendered."""
        batch, k = self._place(i)
        column = batch.column("row")
        while not column[k].is_valid:
            k -= 1
        kind, values = json.loads(column[k].as_py())
        row: AnyRow = KINDS[kind](**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
        return row

    def source(self, i: int) -> str:
        """The place that token row `i` came from."""
        batch, k = self._place(i)
        return str(batch.column("source")[k].as_py())

    def rejected(self) -> Iterator[Rejected]:
        with (self.folder / REJECTED).open(encoding="utf-8") as file:
            for line in file:
                yield Rejected(**json.loads(line))

    def _place(self, i: int) -> tuple[pa.RecordBatch, int]:
        number = bisect.bisect_right(self._starts, i) - 1
        return self._batches[number], i - self._starts[number]

    def _column(self, name: str) -> NDArray[Any]:
        return self._joined([batch.column(name).to_numpy() for batch in self._batches])

    def _joined(self, parts: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def stored(folder: Path, write: Callable[[Path], dict[str, Any]]) -> tuple[Store, bool]:
    """The store at `folder`, and whether it was there.

    Where there is none that is whole, `write(staging)` makes it and returns its report. Raises `StorageError` where it
    cannot be written.
    """
    if (store := _opened(folder)) is not None:
        return store, True
    staging = folder.with_name(f"{STAGING}{folder.name}-{secrets.token_hex(4)}")
    try:
        staging.mkdir(parents=True)
        _sweep(folder.parent)
        report = write(staging)
        report["sha256"] = {name: sha256(staging / name) for name in (ROWS, REJECTED)}
        report["seal"] = _seal(report)
        (staging / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
        _put(staging, folder)
    except (OSError, pa.ArrowException) as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Store(folder), False


def _sweep(parent: Path) -> None:
    """Removes what killed runs left half written; what a living one writes is never as old."""
    for staging in parent.glob(f"{STAGING}*"):
        if time.time() - max(path.stat().st_mtime for path in (staging, *staging.iterdir())) > ABANDONED:
            shutil.rmtree(staging, ignore_errors=True)


def write_rows(folder: Path, chunks: Iterable[Sequence[Rendered | Rejected]]) -> None:
    """Writes `rows.arrow` and `rejected.jsonl`, chunk by chunk."""
    with (
        pa.OSFile(str(folder / ROWS), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
        (folder / REJECTED).open("w", encoding="utf-8") as rejected,
    ):
        for chunk in chunks:
            for each in chunk:
                if isinstance(each, Rejected):
                    rejected.write(json.dumps(asdict(each), default=str) + "\n")
            batch = _record_batch([each for each in chunk if isinstance(each, Rendered)])
            if batch.num_rows:
                writer.write_batch(batch)


def _record_batch(chunk: Sequence[Rendered]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for each in chunk:
        row = json.dumps([type(each.row).__name__, asdict(each.row)], ensure_ascii=False, default=str)
        for number, tokens in enumerate(each.tokens):
            trained = tokens.trained.view(np.uint8)
            digest = hashlib.blake2b(tokens.ids.tobytes() + trained.tobytes(), digest_size=8).digest()
            columns["ids"].append(tokens.ids)
            columns["trained"].append(trained)
            columns["num_trained"].append(int(tokens.trained.sum()))
            columns["item"].append(each.item)
            columns["digest"].append(int.from_bytes(digest, "little"))
            columns["source"].append(tokens.source)
            columns["row"].append(row if number == 0 else None)
    return pa.record_batch([pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names], schema=SCHEMA)


def _opened(folder: Path) -> Store | None:
    if not folder.exists():
        return None
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        if report["seal"] != _seal(report):
            raise ValueError(REPORT)
        for name, digest in report["sha256"].items():
            if sha256(folder / name) != digest:
                raise ValueError(name)
        return Store(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        log.warning("%s is damaged (%s): the rows are tokenised again", folder, error)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _seal(report: dict[str, Any]) -> str:
    content = {key: value for key, value in report.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _put(staging: Path, folder: Path) -> None:
    """Another process may have put an equal store there in the meantime; then that one stays."""
    try:
        os.rename(staging, folder)
    except OSError:
        if not (folder / REPORT).is_file():
            raise


def _unwritable(folder: Path, error: Exception) -> StorageError:
    return StorageError(
        f"{folder}: tokenised rows cannot be kept there: {error}",
        "Make room, set TUNEKIT_CACHE to a folder that can be written, or set data.streaming: true.",
    )
