"""From a recipe to the rows of a run: what is refused before anything is trained, and what is held out."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import DataError, RecipeError
from tunekit.recipe.load import load
from tunekit.stages import preview
from tunekit.stages.base import find_base
from tunekit.stages.read import read_rows
from tunekit.stages.rows import Rows, reusable

CHATS = [
    {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": f"Hello {i}"}]}
    for i in range(20)
]
LONG = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x" * 500}]}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
STREAM = ", streaming: true, max_length: 200, shuffle_buffer: 4"
Read = Callable[..., Rows]


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Any]:
    def write(data: str, more: str = "", **files: list[Any]) -> Any:
        for name, rows in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = f"model: tiny-random/llama\ndata: {data}\noutput_dir: {tmp_path}/out\n{more}"
        (tmp_path / "recipe.yaml").write_text(text.replace("DIR", str(tmp_path)))
        return load(tmp_path / "recipe.yaml")

    return write


def rows_of(resolved: Any, **options: Any) -> Rows:
    return read_rows(resolved.recipe, find_base(resolved.recipe), **options)


@pytest.mark.parametrize("stream", ["", STREAM])
@pytest.mark.parametrize(
    "rows", [[PAIR] * 3, [{"prompt": "a"}] * 3, [{"prompt": "a", "completion": "b", "label": True}] * 3]
)
def test_held_out_rows_of_another_kind_are_refused(recipe: Any, rows: list[Any], stream: str) -> None:
    more = "train: {max_steps: 2}\n" if stream else ""
    with pytest.raises(DataError, match=r"data\.eval: .*b\.jsonl:1: the rows are \w+, and this command takes conv"):
        rows_of(recipe(f"{{train: DIR/a.jsonl, eval: DIR/b.jsonl{stream}}}", more, a=CHATS, b=rows))


def test_a_stream_refuses_rows_of_another_kind_wherever_they_come(recipe: Any) -> None:
    data = f"{{train: [DIR/a.jsonl, DIR/b.jsonl]{STREAM}}}"
    rows = rows_of(recipe(data, "train: {max_steps: 40}\n", a=CHATS, b=[PAIR] * 20))
    with pytest.raises(DataError, match=r"b\.jsonl:1: the rows are pairs, and this command takes conversations"):
        list(rows.loader.steps(0))


def test_rows_longer_than_the_context_of_the_model_are_not_asked_for(recipe: Any) -> None:
    with pytest.raises(RecipeError, match=r"data\.max_length: 4000: the model tiny-random/llama was made for 2048"):
        rows_of(recipe("{train: DIR/a.jsonl, max_length: 4000}", a=CHATS))


def test_the_advice_for_overlong_rows_is_one_that_can_be_followed(recipe: Any) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(recipe("{train: DIR/a.jsonl, max_length: 100}", a=[*CHATS, LONG]))
    assert "data.max_length: 523 (the longest row)" in caught.value.fix
    endless = {"messages": [LONG["messages"][0], {"role": "assistant", "content": "x" * 3000}]}
    with pytest.raises(DataError) as caught:
        rows_of(recipe("{train: DIR/a.jsonl}", a=[*CHATS, endless]))
    assert "longest row" not in caught.value.fix and "data.overlong: drop or truncate" in caught.value.fix


def test_a_source_of_a_mixture_without_a_row_left_is_named(recipe: Any) -> None:
    data = "{train: [{path: DIR/a.jsonl, weight: 1}, {path: DIR/b.jsonl, weight: 1}], overlong: drop, max_length: 200}"
    with pytest.raises(DataError, match=r"b\.jsonl: no row of it is left to train on"):
        rows_of(recipe(data, a=CHATS, b=[LONG]))


def test_a_held_out_part_that_is_all_too_long_is_no_reason_not_to_train(
    recipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = "{train: DIR/a.jsonl, overlong: drop, max_length: 200, eval_split: 1}"
    with caplog.at_level(logging.WARNING, logger="tunekit"):
        held_out = [
            rows_of(recipe(data, f"train: {{seed: {seed}}}\n", a=[*CHATS[:2], LONG])).held_out for seed in range(9)
        ]
    assert held_out.count(None) == caplog.text.count("nothing is held out") > 0
    data = "{train: DIR/a.jsonl, eval: DIR/b.jsonl, overlong: drop, max_length: 200}"
    with pytest.raises(DataError, match="none of 2 rows is left"):
        rows_of(recipe(data, a=CHATS, b=[LONG] * 2))


def test_a_preview_of_a_stream_holds_out_what_the_run_holds_out(recipe: Any) -> None:
    resolved = recipe(f"{{train: DIR/a.jsonl, eval_split: 5{STREAM}}}", "train: {max_steps: 2}\n", a=CHATS)
    run = rows_of(resolved)
    assert run.held_out is not None
    parts = [preview.run(resolved, row=i)["rows"][0]["part"] for i in range(1, 21)]
    assert parts == ["held-out"] * 5 + ["training"] * 15
    assert [row.source.rpartition(":")[2] for row in run.held_out.tokens] == ["1", "2", "3", "4", "5"]


def test_an_iterator_from_python_can_be_read_more_than_once() -> None:
    datasets = reusable({"once": (row for row in CHATS), "list": CHATS})
    assert datasets is not None
    assert [len(list(datasets["once"])) for _ in range(2)] == [20, 20] and datasets["list"] is CHATS


def test_rejected_rows_of_a_run_before_do_not_stay(recipe: Any, tmp_path: Path) -> None:
    bad = {"messages": "nonsense"}
    with pytest.raises(DataError):
        rows_of(recipe("DIR/a.jsonl", a=[*CHATS, bad]), folder=tmp_path)
    assert (tmp_path / "rejected.jsonl").exists()
    rows_of(recipe("DIR/a.jsonl", a=CHATS), folder=tmp_path)
    assert not (tmp_path / "rejected.jsonl").exists()


def test_a_conversation_that_became_several_examples_is_one_row(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think></think>"
        "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    talks = [{"messages": CHATS[i]["messages"] + CHATS[i + 1]["messages"]} for i in range(10)]
    rows = rows_of(recipe("{train: DIR/a.jsonl, eval_split: 2, chat_template: DIR/t.jinja}", a=talks))
    assert rows.train is not None and rows.held_out is not None
    assert (rows.train.summary.rows, rows.train.summary.examples) == (8, 16)
    assert (rows.held_out.summary.rows, rows.held_out.summary.examples) == (2, 4)
