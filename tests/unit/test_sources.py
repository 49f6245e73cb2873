"""Reading rows: every place is right, a malformed row costs no other, and what concerns a file says where and why."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunekit.data.rows import Rejected
from tunekit.data.sources import Item, find
from tunekit.errors import DataError, MissingEnvironment, RecipeError, TunekitError

PANDAS_HEADER = ",prompt,completion\n0,a,b\n"


def write(folder: Path, name: str, content: str | bytes) -> str:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def read(path: str, start: int = 0, **where: Any) -> list[Item]:
    return list(find(path, **where).rows(start))


def values(path: str, **where: Any) -> list[Any]:
    return [item[0] for item in read(path, **where) if not isinstance(item, Rejected)]


def rejected(path: str) -> list[Rejected]:
    return [item for item in read(path) if isinstance(item, Rejected)]


def error_of(path: str, kind: type[TunekitError] = DataError, **where: Any) -> str:
    with pytest.raises(kind) as caught:
        read(path, **where)
    return str(caught.value)


def test_json_lines_with_bom_crlf_and_blank_lines_keep_their_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "t\xc3\xb6"}\r\n')
    assert read(path) == [({"text": "one"}, f"{path}:1"), ({"text": "tö"}, f"{path}:3")]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a\u2028b\x85c"}\n{"text": "d"}\n')
    assert [source for _, source in read(path)] == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": }', "not JSON at column 10: Expecting value"),
        (b'{"a": NaN}', "the literal NaN"),
        (b'{"a": -Infinity}', "the literal -Infinity"),
        (b"[1, 2]", "expected an object with one row, {...}, found [1, 2]"),
        (b'{"a": "\xff"}', "byte 8 (0xff) is not UTF-8"),
        (b'{"a": "x\0"}', "byte 9 is NUL"),
        (b'{"a": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' stands twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", "nested too deeply: more than 100 levels"),
        (b'{"a": ' + b"1" * 5000 + b"}", "4300"),
    ],
)
def test_a_malformed_line_is_rejected_with_its_text_and_the_rest_is_read(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = write(tmp_path, "a.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = read(path)
    assert (first, last) == (({"a": 1}, f"{path}:1"), ({"a": 2}, f"{path}:3"))
    assert isinstance(bad, Rejected) and bad.source == f"{path}:2" and reason in bad.reason
    assert bad.row == line.decode("utf-8", "backslashreplace")


def test_many_brackets_beside_each_other_are_no_depth(tmp_path: Path) -> None:
    row = {"a": [{"b": [i]} for i in range(200)]}
    assert read(write(tmp_path, "a.jsonl", json.dumps(row)))[0][0] == row  # type: ignore[index]


def test_a_last_line_that_is_cut_off_is_said_to_be(tmp_path: Path) -> None:
    (bad,) = rejected(write(tmp_path, "a.jsonl", '{"a": 1}\n{"a": 2'))
    assert bad.source.endswith("a.jsonl:2") and "may be cut off" in bad.reason
    (bad,) = rejected(write(tmp_path, "b.jsonl", '{"a": 1\n{"a": 2}\n'))
    assert "cut off" not in bad.reason


def test_a_whole_surrogate_pair_is_read(tmp_path: Path) -> None:
    assert values(write(tmp_path, "a.jsonl", b'{"a": "\\ud83d\\ude00"}')) == [{"a": "\U0001f600"}]


def test_a_json_array_counts_from_zero(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '\n[{"text": "one"},\n {"text": "two"}]')
    assert [source for _, source in read(path)] == [f"{path}[0]", f"{path}[1]"]


def test_a_malformed_member_of_a_json_array_is_rejected_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "a.json",
        b'[{"a": 1}, "x", {"a": 1, "a": 2}, {"a": NaN}, {"a": "\\ud83d"}, {"a": "\xff"}, {"a": '
        + b"1" * 5000
        + b'}, {"a": "\xc3\xb6"}]',
    )
    assert values(path) == [{"a": 1}, {"a": "ö"}]
    found = rejected(path)
    assert [bad.source for bad in found] == [f"{path}[{i}]" for i in range(1, 7)]
    for bad, reason in zip(found, ["an object", "twice", "NaN", "surrogate", "0xff", "4300"], strict=True):
        assert reason in bad.reason
    assert found[1].row == '{"a": 1, "a": 2}'


def test_a_broken_json_array_names_line_and_column_after_the_rows_before_it(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '[{"text": "one"},\n {"text" "two"}]')
    rows = find(path).rows()
    assert next(rows) == ({"text": "one"}, f"{path}[0]")
    with pytest.raises(DataError, match=r"a\.json:2:10: not JSON: Expecting ':' delimiter"):
        next(rows)


@pytest.mark.parametrize("text", ['[{"a": 1}] x', '{"d": [{"a": 1}]} x', '[{"a": 1},]', "[{}", "x", '{"a": {}, 1: {}}'])
def test_a_json_file_with_something_more_or_less_is_no_json(tmp_path: Path, text: str) -> None:
    assert "not JSON" in error_of(write(tmp_path, "a.json", text))


def test_a_json_file_may_hold_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '{"text": "one"}\n{"text": "two"}\n')
    assert [source for _, source in read(path)] == [f"{path}:1", f"{path}:2"]
    path = write(tmp_path, "b.json", '{"text": one}\n{"text": "two"}\nthree\n')
    assert values(path) == [{"text": "two"}] and len(rejected(path)) == 2
    assert "Remove field" in error_of(path, RecipeError, field="text")


@pytest.mark.parametrize(
    "text",
    [
        '{"rows": [{"a": 1}, {"a": 2}], "x": NaN}',
        '{"rows": [{"a": 1},\n{"a": 2}]}',
        '{"x": NaN, "rows": [\n{"a": 1},\n{"a": 2}]}',
        '{\n  "rows":\n  [\n{"a": 1}\n,\n{"a": 2}\n]\n}',
    ],
)
def test_a_json_object_is_one_however_its_lines_are_broken(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "a.json", text)
    assert values(path, field="rows") == [{"a": 1}, {"a": 2}]
    assert "field: rows" in error_of(path)


def test_a_json_object_with_a_list_of_rows_asks_for_the_field(tmp_path: Path) -> None:
    text = '{"version": 1, "inner": {"rows": [{"a": 1}, {"a": 2}]}, "examples": [{"a": 3}]}'
    path = write(tmp_path, "a.json", text)
    assert "examples (1 objects)" in error_of(path) and "field: examples" in error_of(path)
    assert read(path, field="examples") == [({"a": 3}, f"{path}[0]")]
    assert values(path, field="inner.rows") == [{"a": 1}, {"a": 2}]
    assert read(path, start=1, field="inner.rows") == [({"a": 2}, f"{path}[1]")]
    message = error_of(path, RecipeError, field="exmaples")
    assert "did you mean examples?" in message and "version, inner, examples" in message
    assert "no list of rows there, but 1" in error_of(path, RecipeError, field="version")
    assert "has no key row" in error_of(path, RecipeError, field="inner.row")
    assert "itself the list" in error_of(write(tmp_path, "b.json", "[{}]"), RecipeError, field="a")


def test_a_json_object_of_objects_is_their_rows_and_one_object_a_row(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '{"id1": {"q": "x", "a": 1}, "id2": {"q": "y"}}')
    assert read(path) == [({"q": "x", "a": 1}, f"{path}[id1]"), ({"q": "y"}, f"{path}[id2]")]
    for row in ({"text": "one", "meta": {"a": 1}}, {"meta": {"a": 1}}, {"chosen": {"a": 1}, "rejected": {"b": 1}}):
        single = write(tmp_path, "b.json", json.dumps(row, indent=1))
        assert read(single) == [(row, f"{single}[0]")]


def test_json_over_several_lines_is_no_json_lines(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "a.jsonl", '[\n{"a": 1},\n{"a": 2}\n]'))
    assert "several lines" in message and ".json." in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    content = b"\n" if not name.endswith(".gz") else gzip.compress(b"")
    assert "empty" in error_of(write(tmp_path, name, content))
    assert "empty" in error_of(write(tmp_path, f"0{name}", b""))


def test_csv_rows_are_named_by_the_line_on_which_they_begin(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'prompt,completion\n"two\nlines",b\n\nc,d\n')
    assert read(path) == [
        ({"prompt": "two\nlines", "completion": "b"}, f"{path}:2"),
        ({"prompt": "c", "completion": "d"}, f"{path}:5"),
    ]


def test_tsv_splits_at_tabs_and_long_fields_are_read(tmp_path: Path) -> None:
    long = "x" * 200_000
    assert values(write(tmp_path, "a.tsv", f"prompt\tcompletion\na,b\t{long}\n"))[0]["completion"] == long


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"1,2,3", "3 fields, the header has 2 (a, b)"),
        (b"1", "1 fields"),
        (b'1,"2"x', "',' expected after '\"', in line 3"),
        (b'1,"2\n"x,3', "in lines 3 to 4"),
        (b"1,\xff2", "byte 3 (0xff) is not UTF-8"),
        (b"1,\0", "byte 3 is NUL"),
    ],
)
def test_a_malformed_record_is_rejected_and_the_rest_is_read(tmp_path: Path, record: bytes, reason: str) -> None:
    path = write(tmp_path, "a.csv", b"a,b\n1,2\n" + record + b"\n5,6\n")
    assert values(path) == [{"a": "1", "b": "2"}, {"a": "5", "b": "6"}]
    (bad,) = rejected(path)
    assert bad.source == f"{path}:3" and reason in bad.reason
    assert bad.row == record.decode("utf-8", "backslashreplace")


def test_a_quote_that_is_never_closed_takes_the_rest_of_the_file_and_says_so(tmp_path: Path) -> None:
    (bad,) = rejected(write(tmp_path, "a.csv", 'a,b\n1,2\n1,"2\n3,4\n'))
    assert bad.source.endswith(":3") and "never closed, so that lines 3 to 4" in bad.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,a\n1,2\n", "names a column twice: a"),
        ("a;b\n1;2\n", "separated by ';'"),
        ("a, b\n1,2\n", "spaces around"),
        ('"a,b\n1,2\n', ":1: not CSV: a quote is opened"),
        ("a\0,b\n1,2\n", "NUL"),
        ("a,b\n", "empty but for its header: a, b"),
    ],
)
def test_a_header_that_names_no_columns_is_an_error(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in error_of(write(tmp_path, "a.csv", text))


def test_a_column_without_a_name_gets_its_number(tmp_path: Path) -> None:
    assert values(write(tmp_path, "a.csv", PANDAS_HEADER)) == [{"column 1": "0", "prompt": "a", "completion": "b"}]


def test_a_torn_gzip_gives_the_rows_before_the_cut_and_then_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(5000)))
    assert len(read(write(tmp_path, "a.jsonl.gz", packed))) == 5000
    path = write(tmp_path, "b.jsonl.gz", packed[: len(packed) // 2])
    seen = []
    with pytest.raises(DataError) as caught:
        for item in find(path).rows():
            seen.append(item)
    assert len(seen) > 100 and f"cut off after line {len(seen)}:" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl.gz", b'{"a": 1}\n', "cannot be read: Not a gzipped file"),
        ("a.jsonl", gzip.compress(mtime=0, data=b'{"a": 1}\n'), "packed with gzip, not jsonl"),
        ("a.csv", b"PAR1...", "a parquet file, not csv"),
        ("a.csv", b"PK\x03\x04...", "zip archive"),
        ("a.json", '[{"a": 1}]'.encode("utf-16"), "UTF-16, not json"),
        ("a.parquet", b"no parquet", "cannot be read as parquet"),
        ("a.parquet.gz", b"", "not read through gzip"),
        ("a.jsnl", b"{}", "did you mean .jsonl?"),
        ("a.txt", b"text", '{"text": "..."}'),
    ],
)
def test_a_file_of_another_kind_is_an_error_that_names_the_kind(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = write(tmp_path, name, content)
    assert reason in error_of(path) and path in error_of(path)


def test_parquet_is_read_by_row_group_and_a_torn_one_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    datasets.Dataset.from_list([{"text": str(i)} for i in range(2500)]).to_parquet(path, batch_size=1000)
    everything = read(path)
    assert everything == [({"text": str(i)}, f"{path}[{i}]") for i in range(2500)]
    for start in (1, 999, 1000, 1001, 2499, 2500):
        assert read(path, start) == everything[start:]
    content = Path(path).read_bytes()
    damaged = write(tmp_path, "c.parquet", content[:4] + bytes(200) + content[204:])
    assert "cannot be read as parquet" in error_of(damaged)
    assert len(read(damaged, 1000)) == 1500  # the first row group is not looked at
    torn = write(tmp_path, "b.parquet", content[:-20])
    assert "cannot be read as parquet" in error_of(torn)


def test_a_folder_is_all_its_data_files_and_data_files_chooses(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", '{"text": "b"}\n')
    write(tmp_path, "a.json", '[{"text": "a"}]')
    write(tmp_path, "LICENSE.txt", "free")
    assert [row["text"] for row in values(str(tmp_path))] == ["a", "b"]
    assert [row["text"] for row in values(str(tmp_path), data_files="*.jsonl")] == ["b"]
    assert [row["text"] for row in values(str(tmp_path), data_files=("*.jsonl", "b*", "a.json"))] == ["b", "a"]
    assert "no file matches" in error_of(str(tmp_path), data_files=["*.json", "/nowhere/*.csv"])


def test_a_folder_with_held_out_files_beside_others_asks_which(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", '{"text": "a"}\n')
    write(tmp_path, "test_1.jsonl", '{"text": "b"}\n')
    message = error_of(str(tmp_path))
    assert "test_1.jsonl beside train.jsonl" in message and "data_files: train.jsonl" in message
    assert len(read(f"{tmp_path}/*.jsonl")) == 2  # asked for by name


def test_a_folder_without_data_files_names_those_below_it(tmp_path: Path) -> None:
    assert "holds no .jsonl" in error_of(str(tmp_path))
    write(tmp_path, "deep/a.jsonl", '{"text": "a"}\n')
    assert f"path: {tmp_path}/**/*.jsonl" in error_of(str(tmp_path))


def test_patterns_match_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "a", "deep/c"):
        write(tmp_path, f"{name}.jsonl", f'{{"text": "{name}"}}\n')
    monkeypatch.chdir(tmp_path)
    assert [row["text"] for row in values("*.jsonl")] == ["a", "b"]
    assert [row["text"] for row in values("**/*.jsonl")] == ["a", "b", "deep/c"]
    assert read("[ab].jsonl", start=1) == [({"text": "b"}, "b.jsonl:1")]
    write(tmp_path, "[ab].jsonl", '{"text": "the name"}\n')
    assert [row["text"] for row in values("[ab].jsonl")] == ["the name"]
    assert "no file matches the pattern" in error_of("c*.jsonl")


def test_a_missing_file_names_near_files_and_the_current_directory(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "{}")
    message = error_of(str(tmp_path / "trian.jsonl"))
    assert "train.jsonl" in message and str(Path.cwd()) in message
    assert tmp_path.name in error_of(str(tmp_path) + "x/train.jsonl")


@pytest.mark.parametrize("key", ["name", "split", "revision", "data_files", "field"])
def test_keys_that_have_no_meaning_are_refused(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "one"}\n')
    assert f"data: {key}: x has no meaning" in error_of(path, RecipeError, **{key: "x"})
    assert f"Remove {key}" in error_of("memory:a", RecipeError, datasets={"a": [{}]}, **{key: "x"})
    if key == "field":
        assert "data set of the hub" in error_of("org/set", RecipeError, field="x")


@pytest.mark.parametrize(
    "path", ["nowhere/file.jsonl", "./nowhere", "/nowhere/set", "file.jsnol", "a/b/c", "~/nothing", "a/*"]
)
def test_what_looks_like_a_local_path_never_asks_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the hub"))
    assert "no such file" in error_of(path) or "no file matches" in error_of(path)


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingEnvironment, match="cannot be reached") as caught:
        find("no-such-owner/no-such-set-1.5")
    assert "local file" in caught.value.fix


def test_a_hub_data_set_gives_its_train_split_or_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}])
    splits = datasets.DatasetDict(test=rows, train=rows)
    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or splits)
    assert read("org/set") == [({"text": "one"}, "org/set[train][0]"), ({"text": "two"}, "org/set[train][1]")]
    assert read("org/set", start=1, name="main", revision="abc", data_files=("x.json",)) == read("org/set")[1:]
    assert asked[1] == (("org/set", "main"), {"split": None, "data_files": ["x.json"], "revision": "abc"})
    splits["validation"] = splits.pop("train")
    with pytest.raises(DataError, match="test, validation"):
        find("org/set")


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'org/set' doesn't exist"), DataError, "no file or folder"),
        (ValueError("BuilderConfig 'mian' not found. Available: ['main']"), DataError, "Correct name"),
        (datasets.exceptions.DatasetGenerationError("An error occurred"), DataError, "Correct name"),
        (ConnectionError("Couldn't reach 'org/set'"), MissingEnvironment, "cannot be reached"),
    ],
)
def test_what_the_hub_answers_is_an_error_of_ours(
    raised: Exception, kind: type[TunekitError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = error_of("org/set", kind)
    assert words in message and str(raised) in message and message.startswith("org/set")


def test_a_hub_data_set_is_read_through_the_library_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The json builder of `datasets` stands for a repository: memory map, split and hash are the library's own."""
    write(tmp_path, "a.jsonl", "".join(f'{{"text": "{i}"}}\n' for i in range(3)))
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda path, *args, **options: load(
            "json", **{**options, "data_files": f"{tmp_path}/a.jsonl"}, cache_dir=str(tmp_path / "cache")
        ),
    )
    whole, part = find("org/set", split="train"), find("org/set", split="train[1:]")
    assert [row["text"] for row, _ in whole.rows(1)] == ["1", "2"] == [row["text"] for row, _ in part.rows()]
    assert whole.fingerprint() == find("org/set", split="train").fingerprint() != part.fingerprint()


def test_rows_in_memory_are_found_by_name() -> None:
    rows = [{"text": "one"}, "no row", {"text": "\ud83d"}, {1: 2}, {"text": "two"}]
    found = read("memory:mine", datasets={"mine": rows})
    assert [item[0] for item in found if not isinstance(item, Rejected)] == [{"text": "one"}, {"text": "two"}]
    bad = [item for item in found if isinstance(item, Rejected)]
    assert [item.source for item in bad] == ["memory:mine[1]", "memory:mine[2]", "memory:mine[3]"]
    for item, reason in zip(bad, ["expected a dict", "surrogate", "must be strings"], strict=True):
        assert reason in item.reason
    message = error_of("memory:mien", RecipeError, datasets={"mine": rows, "other": rows})
    assert "mine, other" in message and "did you mean memory:mine?" in message and "from Python" in message
    assert "(none)" in error_of("memory:mine", RecipeError)


def test_whatever_gives_rows_may_be_in_memory() -> None:
    rows = [{"text": "one", "n": 1}, {"text": "two", "n": None}]
    table = datasets.Dataset.from_list(rows)
    for data in (
        rows,
        tuple(rows),
        table,
        table.to_pandas().astype({"n": object}),
        iter(rows),
        table.to_iterable_dataset(),
    ):
        source = find("memory:a", datasets={"a": data})
        assert [row for row, _ in source.rows()] == [row for row, _ in source.rows()] == rows
        assert [place for _, place in source.rows(1)] == ["memory:a[1]"]
    for wrong in (datasets.DatasetDict(train=table), {"text": ["one"]}, "text", 5):
        assert "is not a list of rows" in error_of("memory:a", RecipeError, datasets={"a": wrong})
    assert "empty" in error_of("memory:a", datasets={"a": []})


def test_tables_lose_the_nulls_that_arrow_fills_in_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = [
        {"calls": [{"name": "weather", "arguments": {"city": {"name": "Rome"}}}], "label": None},
        {"calls": [{"name": "add", "arguments": {"a": 1}}], "label": "x"},
    ]
    table = datasets.Dataset.from_list(rows)
    filled = table[1]["calls"][0]["arguments"]
    assert filled == {"a": 1, "city": None}, "so that the call would be trained with a null"
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.DatasetDict(train=table))
    table.to_parquet(tmp_path / "a.parquet")
    sets = {"table": table, "stream": table.to_iterable_dataset(), "frame": pandas.DataFrame(table.to_list())}
    paths = [str(tmp_path / "a.parquet"), "org/set", *(f"memory:{name}" for name in sets)]
    for path in paths:
        given = {"datasets": sets} if path.startswith("memory:") else {}
        assert values(path, **given) == rows, path
    written = [{"calls": [None, {"arguments": {"city": None}}], "label": None}]
    assert values("memory:a", datasets={"a": written}) == written
    assert values(write(tmp_path, "a.jsonl", json.dumps(written[0]))) == written
    lists = datasets.Dataset.from_list([{"a": {"b": [None, "x"]}}])
    assert values("memory:a", datasets={"a": lists}) == [{"a": {"b": [None, "x"]}}]


@pytest.mark.parametrize("depth", [110, 5000])
def test_rows_in_memory_may_be_as_deep_as_those_of_a_file(depth: int) -> None:
    deep: Any = "x"
    for _ in range(depth):
        deep = ({"a": deep},)
    (bad,) = read("memory:a", datasets={"a": [{"text": deep}]})
    assert isinstance(bad, Rejected)
    assert ("more than 100 levels" if depth == 110 else "recursion depth") in bad.reason
    assert not isinstance(read("memory:a", datasets={"a": [{"text": [[["x"]]]}]})[0], Rejected)


def test_a_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    one, same, other = ('{"d": [{"text": "a"}]}', '{"d": [{"text": "a"}]}', '{"d": [{"text": "b"}]}')
    prints = [
        find(write(tmp_path, f"{i}.json", text), field="d").fingerprint() for i, text in enumerate((one, same, other))
    ]
    assert prints[0] == prints[1] != prints[2] and all(len(each) == 64 for each in prints)
    assert find(f"{tmp_path}/0.json").fingerprint() != prints[0]  # without the field
    table = [write(tmp_path, name, "a\tb,c\n1\t2,3\n") for name in ("a.csv", "a.tsv")]
    assert find(table[0]).fingerprint() != find(table[1]).fingerprint()
    both = find(f"{tmp_path}/[01].json", field="d").fingerprint()
    assert both != prints[0]

    def in_memory(*rows: Any) -> str:
        return find("memory:a", datasets={"a": list(rows)}).fingerprint()

    assert in_memory({"a": 1}) == in_memory({"a": 1}) != in_memory({"a": 2})
    assert in_memory({"a": 1}, {"b": 2}) != in_memory({"a": 1, "b": 2})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_to_start_later_is_to_leave_out_the_first_items(data: st.DataObject, tmp_path: Path) -> None:
    good, bad = st.just('{"a": 1}'), st.sampled_from(["", "x", '{"a": NaN}'])
    lines = data.draw(st.lists(good | bad, min_size=1, max_size=6))
    write(tmp_path, "a.jsonl", "\n".join(['{"a": 0}', *lines]))
    write(tmp_path, "b.json", json.dumps([{"b": i} for i in range(data.draw(st.integers(1, 4)))]))
    write(tmp_path, "c.csv", "c\n" + "".join(f"{i}\n" for i in range(data.draw(st.integers(1, 4)))))
    everything = read(str(tmp_path))
    start = data.draw(st.integers(0, len(everything) + 1))
    assert read(str(tmp_path), start) == everything[start:]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.none(), max_size=3), min_size=2, max_size=3
    )
)
def test_whatever_json_writes_is_read_back(rows: list[dict[str, object]], tmp_path: Path) -> None:
    lines = write(tmp_path, "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    array = write(tmp_path, "a.json", json.dumps(rows, indent=1))
    field = write(tmp_path, "b.json", json.dumps({"x": 1, "d": rows}, ensure_ascii=False))
    assert values(lines) == values(array) == values(field, field="d") == rows


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=60) | st.text('{}[]":,a1\\ud8 \n\r\0', max_size=40).map(str.encode),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.parquet"]),
)
def test_no_bytes_crash_a_reader(content: bytes, name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, content)
    try:
        for item in read(path):
            assert (item.source if isinstance(item, Rejected) else item[1]).startswith(path)
            json.dumps(item.row if isinstance(item, Rejected) else item[0], ensure_ascii=False).encode()
    except DataError as error:
        assert path in str(error)


def test_a_large_file_streams_in_constant_memory(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 1000}) + "\n"
    write(tmp_path, "a.jsonl", line * 100_000)
    write(tmp_path, "a.csv", "text\n" + ("x" * 1000 + "\n") * 100_000)
    program = (
        "import resource, sys; from tunekit.data.sources import find\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert sum(1 for _ in find(sys.argv[1]).rows()) == 100_000\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    for name in ("a.jsonl", "a.csv"):
        run = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name)], capture_output=True, text=True, check=True
        )
        assert int(run.stdout) < 10 * 1024, f"{name}: {run.stdout.strip()} KiB for a file of 100 MB"
