"""`tunekit preview`: what is shown is what is trained, for every kind of row, and what is wrong sets the exit code."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.stores import token_row
from tunekit.cli import app
from tunekit.data.preview import exact, histogram, spans
from tunekit.errors import DataError, RecipeError
from tunekit.models.tiny_random import tokenizer
from tunekit.recipe.load import load
from tunekit.stages.base import find_base
from tunekit.stages.preview import render, run, write_html
from tunekit.stages.read import read_rows

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CHATS = [{"messages": [{**USER, "content": f"Hi {i}"}, {**ANSWER, "content": f"Hello {i}"}]} for i in range(10)]
Write = Callable[..., Path]


@pytest.fixture
def recipe(tmp_path: Path) -> Write:
    def write(rows: list[Any], data: str = "") -> Path:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        file = tmp_path / "recipe.yaml"
        file.write_text(
            f"model: tiny-random/llama\ndata: {{train: {tmp_path}/rows.jsonl{data}}}\noutput_dir: {tmp_path}/out\n"
        )
        return file

    return write


def shown(report: dict[str, Any]) -> str:
    return "\n".join(line.plain for line in render(report, colour=False))


@given(st.lists(st.tuples(st.integers(0, 258), st.booleans()), min_size=1, max_size=40))
def test_the_spans_of_a_row_are_its_runs_and_together_its_text(pairs: list[tuple[int, bool]]) -> None:
    row = token_row([i for i, _ in pairs], [t for _, t in pairs])
    found = spans(row, tokenizer())
    flags = [t for _, t in pairs]
    runs = [flags[0], *(b for a, b in itertools.pairwise(flags) if a != b)]
    assert [span.trained for span in found] == runs
    report = exact(row, tokenizer())
    assert report["ids"] == [i for i, _ in pairs] and report["trained"] == [int(t) for t in flags]
    assert "".join(span.text for span in found) == report["text"]


def test_a_character_of_tokens_in_two_spans_is_in_the_one_where_it_ends() -> None:
    row = token_row(tokenizer()("x🙂yé")["input_ids"], [0, 0, 0, 1, 1, 0, 0, 1])
    assert [span.text for span in spans(row, tokenizer())] == ["x", "🙂", "y", "é"]


def test_spans_are_decoded_in_time_that_grows_with_the_row() -> None:
    decoded = []

    class Counting:
        def decode(self, ids: list[int], **options: Any) -> str:
            decoded.append(len(ids))
            return str(tokenizer().decode(ids, **options))

    row = token_row([65] * 4000, [i // 10 % 2 for i in range(4000)])
    assert len(spans(row, Counting())) == 400  # type: ignore[arg-type]
    assert sum(decoded) < 10 * len(row.ids)


@given(st.lists(st.integers(1, 5000), min_size=1))
def test_a_histogram_counts_every_row_once_where_it_belongs(lengths: list[int]) -> None:
    bars = histogram(np.array(lengths))
    assert len(bars) <= 12 and sum(bar.rows for bar in bars) == len(lengths)
    for bar in bars:
        assert bar.rows == sum(bar.low <= length <= bar.high for length in lengths)


def test_json_is_what_training_sees(recipe: Write) -> None:
    file = recipe(CHATS)
    report = run(load(file), count=0)
    resolved = load(file).recipe
    rows = read_rows(resolved, find_base(resolved))
    assert rows.train is not None
    assert [(row["ids"], row["trained"]) for row in report["rows"]] == [
        (row.ids.tolist(), row.trained.astype(int).tolist()) for row in rows.train.tokens
    ]
    assert report["held_out"] == 1 and report["exit_code"] == 0
    assert run(load(file), count=0) == report, "the same from run to run, or CI could not compare it"


def test_trained_text_stands_in_brackets_where_there_is_no_colour(recipe: Write) -> None:
    text = shown(run(load(recipe(CHATS)), row=4))
    assert "rows.jsonl:4 (training): " in text
    assert "<|im_start|>user\nHi 3<|im_end|>\n<|im_start|>assistant\n⟦Hello 3<|im_end|>⟧\n" in text


def test_a_row_is_found_by_its_number_also_when_it_is_held_out(recipe: Write) -> None:
    reports = [run(load(recipe(CHATS)), row=i) for i in range(1, 11)]
    assert [report["rows"][0]["source"].rpartition(":")[2] for report in reports] == [str(i) for i in range(1, 11)]
    assert [report["rows"][0]["part"] for report in reports].count("held-out") == 1
    for row in (0, 11):
        with pytest.raises(RecipeError, match="the data has rows 1 to 10"):
            run(load(recipe(CHATS)), row=row)


KINDS: list[tuple[dict[str, Any], list[str]]] = [
    ({"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "No"}]}, ["chosen", "rejected", "⟦No<"]),
    ({"prompt": "2+2=", "chosen": "4", "rejected": "5"}, ["2+2=⟦4<|im_end|>⟧", "2+2=⟦5<|im_end|>⟧"]),
    ({"prompt": [USER], "completion": [ANSWER], "label": False}, ["label false", "⟦Hello<|im_end|>⟧"]),
    ({"prompt": [USER]}, ["0 trained", "<|im_start|>assistant\n"]),
    ({"text": "Once upon a time"}, ["⟦nce upon a time<|im_end|>⟧"]),
]


@pytest.mark.parametrize(("row", "expected"), KINDS)
def test_every_kind_of_row_is_shown(recipe: Write, row: dict[str, Any], expected: list[str]) -> None:
    text = shown(run(load(recipe([row] * 3))))
    assert all(each in text for each in expected), text


def test_what_is_wrong_is_shown_beside_what_is_not(recipe: Write) -> None:
    rows = [*CHATS, {"messages": []}, {"messages": [USER, {**ANSWER, "content": "x" * 300}]}]
    report = run(load(recipe(rows, ", max_length: 200, eval_split: 0")))
    assert report["exit_code"] == 3 and len(report["problems"]) == 2 and report["kept"]["rows"] == 10
    text = shown(report)
    assert "rows.jsonl:11: " in text and "over data.max_length: 200" in text and "> max_length" in text


def test_cuts_drops_copies_and_leaks_are_counted(recipe: Write) -> None:
    long = {"messages": [USER, {**ANSWER, "content": "x" * 300}]}
    report = run(load(recipe([*CHATS, CHATS[0], long], ", max_length: 200, overlong: truncate, eval_split: 0")))
    assert (report["kept"]["truncated"], report["kept"]["answers_cut"], report["overlap"]["duplicates"]) == (1, 1, 1)
    assert "1 lost part of an answer" in shown(report) and "copies of an earlier one" in shown(report)


def test_the_data_does_not_steer_the_terminal(recipe: Write) -> None:
    escape = {"messages": [{**USER, "content": "\x1b[2Jgone \x9b2J\x07"}, ANSWER]}
    text = shown(run(load(recipe([escape] * 2))))
    assert "gone" in text and not any(char in text for char in "\x1b\x9b\x07")


def test_a_stream_is_looked_at_from_its_beginning(recipe: Write) -> None:
    data = ", streaming: true, max_length: 200, eval_split: 2}\ntrain: {max_steps: 3"
    report = run(load(recipe(CHATS, data)), count=0)
    assert len(report["rows"]) == 8 and report["held_out"] == 2


def test_rows_from_python_are_shown(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("model: tiny-random/llama\ndata: memory:mine\noutput_dir: out\n")
    report = run(load(file), datasets={"mine": CHATS})
    assert report["sources"][0]["rows"] == 10
    with pytest.raises(RecipeError, match="memory:mine"):
        run(load(file))


def test_the_page_is_whole_in_itself(recipe: Write, tmp_path: Path) -> None:
    write_html(run(load(recipe(CHATS))), str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "Hello" in page and "<html" in page
    assert not any(word in page for word in ("<script", "src=", "href=", "url(", "@import"))


def test_the_command_prints_json_alone_and_exits_as_the_report_says(recipe: Write) -> None:
    file = recipe([*CHATS, {"messages": []}])
    result = CliRunner().invoke(app, ["preview", str(file), "--json", "-n", "1"])
    report = json.loads(result.stdout)
    assert result.exit_code == 3 and len(report["rows"]) == 1 and not Path(load(file).recipe.output_dir).exists()
    result = CliRunner().invoke(app, ["preview", str(file), "data.max_rejected=1"])
    assert result.exit_code == 0 and "⟦Hello 0" in result.stdout


def test_nothing_to_look_at_is_an_error(recipe: Write) -> None:
    with pytest.raises(DataError, match="1 of 1 rows cannot be used"):
        run(load(recipe([{"messages": []}])))
