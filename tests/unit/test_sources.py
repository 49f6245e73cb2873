"""Reading rows: every place is right, and every file that cannot be read says where and why."""

import gzip
import json
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunekit.data.sources import read
from tunekit.errors import DataError, MissingEnvironment, RecipeError


def write(folder: Path, name: str, content: str | bytes) -> str:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def error_of(path: str) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


def test_json_lines_with_bom_crlf_and_blank_lines_keep_their_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "t\xc3\xb6"}\r\n')
    assert read(path) == [({"text": "one"}, f"{path}:1"), ({"text": "tö"}, f"{path}:3")]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a\u2028b\x85c"}\n{"text": "d"}\n')
    assert [source for _, source in read(path)] == [f"{path}:1", f"{path}:2"]


def test_a_malformed_line_is_named_with_line_and_column(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "one"}\n{"text": }\n')
    assert f"{path}:2:10: not JSON: Expecting value" in error_of(path)


def test_all_bad_lines_are_counted_and_the_first_five_shown(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "ok"}\n' + "nonsense\n" * 7)
    message = error_of(path)
    assert "7 of 8 rows" in message and "and 2 more" in message
    assert f"{path}:6:1" in message and f"{path}:7:1" not in message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": NaN}', "the literal NaN"),
        (b'{"a": -Infinity}', "the literal -Infinity"),
        (b"[1, 2]", "expected an object"),
        (b'{"a": "\xff"}', ":2:8: byte 0xff is not UTF-8"),
        (b'{"a": "\\ud83d"}', "surrogate"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_line_that_json_would_take_or_crash_on_is_refused_with_its_place(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = write(tmp_path, "a.jsonl", b'{"a": 1}\n' + line + b"\n")
    message = error_of(path)
    assert reason in message and f"{path}:2" in message


def test_a_whole_surrogate_pair_is_read(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.jsonl", b'{"a": "\\ud83d\\ude00"}'))[0][0] == {"a": "\U0001f600"}


def test_a_json_array_counts_from_zero(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '\n[{"text": "one"},\n {"text": "two"}]')
    assert [source for _, source in read(path)] == [f"{path}[0]", f"{path}[1]"]


def test_a_json_file_may_hold_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '{"text": "one"}\n{"text": "two"}\n')
    assert [source for _, source in read(path)] == [f"{path}:1", f"{path}:2"]


def test_a_broken_json_array_names_line_and_column(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '[{"text": "one"},\n {"text" "two"}]')
    assert f"{path}:2:10: not JSON: Expecting ':' delimiter" in error_of(path)
    assert "[1]: expected an object" in error_of(write(tmp_path, "b.json", '[{"a": 1}, "x"]'))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    assert "empty" in error_of(write(tmp_path, name, "\n"))


def test_csv_rows_are_named_by_the_line_on_which_they_begin(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'prompt,completion\n"two\nlines",b\n\nc,d\n')
    assert read(path) == [
        ({"prompt": "two\nlines", "completion": "b"}, f"{path}:2"),
        ({"prompt": "c", "completion": "d"}, f"{path}:5"),
    ]


def test_tsv_splits_at_tabs_and_long_fields_are_read(tmp_path: Path) -> None:
    long = "x" * 200_000
    assert read(write(tmp_path, "a.tsv", f"prompt\tcompletion\na,b\t{long}\n"))[0][0]["completion"] == long


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b\n1,2\n1,2,3\n", ":3: 3 fields, the header has 2"),
        ("a,b\n1\n", ":2: 1 fields"),
        ('a,b\n1,"2\n', ":2: not CSV"),
        ("a,a\n1,2\n", "a column twice"),
    ],
)
def test_a_malformed_csv_is_named_by_line(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in error_of(write(tmp_path, "a.csv", text))


def test_gzip_is_read_and_a_torn_one_is_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"text": "one"}\n' * 100)
    assert len(read(write(tmp_path, "a.jsonl.gz", packed))) == 100
    assert "cannot be read" in error_of(write(tmp_path, "b.jsonl.gz", packed[:-12]))


def test_parquet_is_read_and_a_torn_one_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}]).to_parquet(path)
    assert read(path) == [({"text": "one"}, f"{path}[0]"), ({"text": "two"}, f"{path}[1]")]
    assert "parquet" in error_of(write(tmp_path, "b.parquet", "no parquet"))


def test_a_folder_is_all_its_data_files_and_data_files_chooses(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", '{"text": "b"}\n')
    write(tmp_path, "a.json", '[{"text": "a"}]')
    write(tmp_path, "LICENSE.txt", "free")
    assert [row["text"] for row, _ in read(str(tmp_path))] == ["a", "b"]
    assert [row["text"] for row, _ in read(str(tmp_path), data_files="*.jsonl")] == ["b"]
    with pytest.raises(DataError, match="no such file"):
        read(str(tmp_path), data_files=["*.json", "/nowhere/*.csv"])


def test_a_folder_without_data_files_is_an_error(tmp_path: Path) -> None:
    assert "holds no .jsonl" in error_of(str(tmp_path))


def test_a_missing_file_names_near_files_and_the_current_directory(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "{}")
    message = error_of(str(tmp_path / "trian.jsonl"))
    assert "train.jsonl" in message and str(Path.cwd()) in message
    assert tmp_path.name in error_of(str(tmp_path) + "x/train.jsonl")


def test_an_unknown_kind_of_file_lists_the_accepted_ones(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "a.jsnl", "{}"))
    assert "did you mean .jsonl" in message and ".parquet" in message


def test_hub_keys_are_refused_for_a_local_file(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "one"}\n')
    with pytest.raises(RecipeError, match="split"):
        read(path, split="train")
    with pytest.raises(RecipeError, match="data_files"):
        read(path, data_files="*.jsonl")


@pytest.mark.parametrize(
    "path", ["nowhere/file.jsonl", "./nowhere", "/nowhere/set", "file.jsnol", "a/b/c", "~/nothing"]
)
def test_what_looks_like_a_local_path_never_asks_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the hub"))
    assert "no such file" in error_of(path)


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingEnvironment, match="cannot be reached") as caught:
        read("no-such-owner/no-such-set-1.5")
    assert "local file" in caught.value.fix


def test_a_hub_data_set_gives_its_train_split_or_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"text": "one"}])
    splits = datasets.DatasetDict(test=rows, train=rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: splits)
    assert read("org/set") == [({"text": "one"}, "org/set[train][0]")]
    splits["validation"] = splits.pop("train")
    with pytest.raises(DataError, match="test, validation"):
        read("org/set")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.none(), max_size=3), min_size=1, max_size=3
    )
)
def test_whatever_json_writes_is_read_back(rows: list[dict[str, object]], tmp_path: Path) -> None:
    lines = write(tmp_path, "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    array = write(tmp_path, "a.json", json.dumps(rows, indent=1))
    assert [row for row, _ in read(lines)] == [row for row, _ in read(array)] == rows


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz"]))
def test_no_bytes_crash_a_reader(content: bytes, name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, content)
    try:
        assert read(path)
    except DataError as error:
        assert path in str(error)
