"""Token rows on disk: they come back as they went in, and what is damaged is never read."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stores import store_of, token_row
from tunekit.data.rows import Conversation, Rejected, Text
from tunekit.data.store import Rendered, Store, stored, write_rows
from tunekit.errors import StorageError

ROWS = [
    [token_row([5, 6, 7], [0, 1, 1], "a.jsonl:1")],
    Rejected("a.jsonl:2", "half a \ud800 pair", {"text": "\ud800"}, "Correct it."),
    [token_row([1], [0], "a.jsonl:3"), token_row([2, 3], [0, 1], "a.jsonl:3 (message 3)")],
    [token_row(range(300), [i % 2 for i in range(300)], "a.jsonl:4")],
    [token_row([5, 6, 7], [0, 1, 1], "a.jsonl:5")],
]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1), max_size=9), st.integers(1, 4)
)
@settings(deadline=None, max_examples=50)
def test_rows_come_back_as_they_went_in(tmp_path_factory: pytest.TempPathFactory, rows: list, chunk: int) -> None:
    made = [[token_row([i for i, _ in row], [t for _, t in row], f"place {n}")] for n, row in enumerate(rows)]
    store = store_of(tmp_path_factory.mktemp("store") / "s", made, chunk=chunk)
    assert len(store) == len(rows) == len(list(store))
    for i, row in enumerate(made):
        assert store[i].ids.tolist() == row[0].ids.tolist() and store[i].ids.dtype == np.int32
        assert store[i].trained.tolist() == row[0].trained.tolist() and store[i].trained.dtype == np.bool_
        assert store[i].source == store.source(i) == f"place {i}"
    assert store.lengths.tolist() == [len(row) for row in rows]
    assert store.trained.tolist() == [sum(t for _, t in row) for row in rows]


def test_a_row_knows_its_item_its_text_and_its_equals(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", ROWS)
    assert store.items.tolist() == [0, 2, 2, 3, 4]
    assert store.row(2) == Text("", "text 2", "a.jsonl:3")
    same = store.digests[:, None] == store.digests
    assert same.sum() == 7 and same[0, 4], "only the first and the last are equal"
    (rejected,) = store.rejected()
    assert rejected == ROWS[1]


def test_a_conversation_comes_back_equal(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": null}'}}
    messages = ({"role": "user", "content": "hé"}, {"role": "assistant", "content": None, "tool_calls": [call]})
    row = Conversation(messages, "a:1", tools='[{"name": "f"}]')

    def write(staging: Path) -> dict:
        write_rows(staging, [[Rendered(0, row, [token_row([1, 2], [0, 1])])]])
        return {}

    assert stored(tmp_path / "s", write)[0].row(0) == row


def test_a_store_is_written_once(tmp_path: Path) -> None:
    first = store_of(tmp_path / "s", ROWS)
    again, was_there = stored(tmp_path / "s", lambda staging: pytest.fail("written again"))
    assert was_there
    assert again.report == first.report


def damage(file: Path, how: str) -> None:
    raw = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "half":
        file.write_bytes(raw[: len(raw) // 2])
    elif how == "one byte less":
        file.write_bytes(raw[:-1])
    elif how == "flipped bit":
        middle = len(raw) // 2
        file.write_bytes(raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :])
    else:
        file.write_bytes(raw + b"x")


@pytest.mark.parametrize("how", ["missing", "empty", "half", "one byte less", "flipped bit", "trailing byte"])
@pytest.mark.parametrize("name", ["rows.arrow", "rejected.jsonl", "report.json"])
def test_a_damaged_store_is_made_again_and_never_read(tmp_path: Path, name: str, how: str) -> None:
    store = store_of(tmp_path / "s", ROWS)
    expected, report = [row.ids.tolist() for row in store], store.report
    damage(tmp_path / "s" / name, how)
    if name == "report.json" and how == "flipped bit":
        text = (tmp_path / "s" / name).read_bytes()
        assert text != json.dumps(report).encode()
    again = store_of(tmp_path / "s", ROWS)
    assert [row.ids.tolist() for row in again] == expected and again.report == report
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["rejected.jsonl", "report.json", "rows.arrow"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(staging: Path) -> dict:
        write_rows(staging, [[Rendered(0, Text("", "x", "a:1"), [token_row([1], [0])])]])
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        stored(tmp_path / "s", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="TUNEKIT_CACHE"):
        store_of(tmp_path / "file" / "s", ROWS)


def test_two_processes_that_write_the_same_store_both_get_it(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        lengths = pool.starmap(_length_of, [(tmp_path / "s",)] * 4)
    assert lengths == [5] * 4 and [path.name for path in tmp_path.iterdir()] == ["s"]


def _length_of(folder: Path) -> int:
    return len(store_of(folder, ROWS))


def test_a_store_is_for_those_whom_the_umask_lets_in(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert store_of(tmp_path / "s", ROWS).folder.stat().st_mode & 0o777 == 0o750
    finally:
        os.umask(before)


def test_what_a_killed_run_left_half_written_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    for name in (".tmp-old", ".tmp-new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.arrow").write_bytes(b"half")
    for path in (tmp_path / ".tmp-old", tmp_path / ".tmp-old" / "rows.arrow", tmp_path / ".tmp-new"):
        os.utime(path, (0, 0))
    store_of(tmp_path / "s", ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-new", "s"]


def test_rows_are_counted_from_the_end_too(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", ROWS, chunk=2)
    assert [store[i].source for i in range(-5, 0)] == [store[i].source for i in range(5)]
    for i in (5, -6):
        with pytest.raises(IndexError):
            store[i]


def test_an_empty_store_has_no_rows(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", [])
    assert len(store) == 0 and list(store) == [] and isinstance(store, Store)
