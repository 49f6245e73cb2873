"""What a row asks, what is kept of it, and which rows and destinations are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.data.rows import Prompt
from tunekit.errors import DataError, RecipeError
from tunekit.stages import generate
from tunekit.stages.generate import request

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0.0, "top_p": 1.0, "seed": None, "batch_size": 2}


@pytest.mark.parametrize(
    ("row", "prompt", "reference"),
    [
        ({"messages": [USER, ANSWER]}, (USER,), "hello"),
        ({"messages": [USER, ANSWER, USER]}, (USER, ANSWER, USER), None),
        ({"prompt": "hi"}, (USER,), None),
        ({"prompt": "hi", "completion": "hello"}, (USER,), "hello"),
        ({"prompt": [USER], "completion": [ANSWER]}, (USER,), [ANSWER]),
        ({"prompt": [USER, ANSWER]}, (USER,), "hello"),
        ({"instruction": "hi", "output": "hello"}, (USER,), "hello"),
        ({"instruction": "hi"}, (USER,), None),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, (USER,), "hello"),
        ({"text": "Once"}, "Once", None),
        ({"messages": None, "prompt": "hi"}, (USER,), None),
        ({"prompt": "hi", "completion": "hello", "reference": "mine"}, (USER,), "mine"),
    ],
)
def test_each_format_of_a_row(row: dict[str, Any], prompt: Any, reference: Any) -> None:
    asked = request({"id": 7, **row}, "a.jsonl:1", raw=False)
    assert asked.prompt == Prompt(prompt, "a.jsonl:1")
    assert asked.row.get("reference") == reference
    assert asked.row["id"] == 7 and "completion" not in asked.row


def test_raw_continues_a_text_and_refuses_a_conversation() -> None:
    assert request({"prompt": "Once"}, "a.jsonl:1", raw=True).prompt.prompt == "Once"
    with pytest.raises(DataError, match="--raw continues plain text"):
        request({"messages": [USER]}, "a.jsonl:1", raw=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "hi"}, "no prompt under one of the keys(.|\n)*its keys are question"),
        ({"prompt": ""}, "no prompt under"),
        ({"messages": [ANSWER]}, "nothing to answer"),
        ({"messages": []}, "nothing to answer"),
        ({"messages": "hi"}, "messages must be a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "accepted are system, user"),
    ],
)
def test_a_row_that_asks_nothing_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"a.jsonl:3: (.|\n)*{message}"):
        request(row, "a.jsonl:3", raw=False)


def run(**options: Any) -> dict[str, Any]:
    given = {"prompt": None, "input_path": None, "output": None, "raw": False, **GREEDY, **options}
    return generate.run("tiny-random/llama", **given)


def test_one_source_of_prompts_and_a_free_destination(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="either --prompt"):
        run()
    with pytest.raises(RecipeError, match="either --prompt"):
        run(prompt="x", input_path="x.jsonl")
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(RecipeError, match="exists already"):
        run(prompt="x", output=str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_prompts_that_leave_no_room_are_named_before_anything_is_written(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "short"}\n{"text": "' + "x" * 2045 + '"}\n')
    with pytest.raises(DataError, match=r"1 of 2 prompts(.|\n)*in.jsonl:2: 2,045 tokens(.|\n)*Lower --max-new-tokens"):
        run(input_path=str(file), output=str(tmp_path / "out.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_failure_on_the_way_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "complete", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(prompt="x", output=str(tmp_path / "deep" / "out.jsonl"))
    assert list((tmp_path / "deep").iterdir()) == []


def test_sampling_follows_the_seed() -> None:
    options = {"prompt": "hi", "temperature": 1.0, "max_new_tokens": 20}
    first, again, other = (run(**options, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["completion"] != other["completion"]
    torch.manual_seed(1)  # as a new process would begin, with a seed that is always the same
    assert run(**options)["completion"] != first["completion"]
