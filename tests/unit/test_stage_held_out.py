"""What held-out rows are asked: prompts that leave room for an answer, and an error where there is none."""

import json
import logging
from pathlib import Path

import pytest

from tunekit.errors import DataError
from tunekit.models.policy import Policy
from tunekit.objectives.sft import SFT
from tunekit.recipe.load import load
from tunekit.recipe.schema import Recipe
from tunekit.stages.assemble import make_policy
from tunekit.stages.base import Base, find_base
from tunekit.stages.held_out import evaluation, sample_answer
from tunekit.stages.read import read_rows
from tunekit.stages.rows import Rows
from tunekit.train.engine import Engine

CONTEXT = 2048  # tokens (bytes) of tiny-random/gpt2, which has a learned position for each
LONG, SHORT = "x" * 3000, "a short question"  # the row of LONG is dropped
NEAR = "x" * (CONTEXT - 40)  # its row fits, with an answer of 64 tokens it does not


def pair(prompt: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": "yes"}


def parts(folder: Path, held_out: list[dict[str, str]]) -> tuple[Recipe, Policy, Base, Rows]:
    for name, rows in (("train", [pair(SHORT), pair("another")]), ("eval", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "recipe.yaml"
    file.write_text(
        f"model: tiny-random/gpt2\ndata: {{train: {folder}/train.jsonl, eval: {folder}/eval.jsonl, overlong: drop}}\n"
        f"eval: {{metrics: [exact_match], max_new_tokens: 64}}\noutput_dir: {folder}/out\n"
    )
    recipe = load(file, ()).recipe
    base = find_base(recipe)
    rows = read_rows(recipe, base)
    return recipe, make_policy(recipe, base, rows, Engine()), base, rows


def test_prompts_without_room_for_an_answer_are_left_out_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, policy, base, rows = parts(tmp_path, [pair(LONG), pair(NEAR), pair(SHORT)])
    with caplog.at_level(logging.WARNING, logger="tunekit"):
        evaluate = evaluation(recipe, policy, SFT, base, rows, Engine())
    assert "1 of 2 held-out prompts are left out" in caplog.text
    assert "eval_exact_match" in evaluate(lambda: None)
    assert isinstance(sample_answer(policy, base, rows), str)


@pytest.mark.parametrize(
    ("held_out", "problem"),
    [([{"text": "no prompt here"}], "none has a prompt"), ([pair(LONG), pair(NEAR)], "none leaves room")],
)
def test_metrics_without_anything_to_answer_fail_before_training(
    tmp_path: Path, held_out: list[dict[str, str]], problem: str
) -> None:
    recipe, policy, base, rows = parts(tmp_path, held_out)
    with pytest.raises(DataError, match=problem):
        evaluation(recipe, policy, SFT, base, rows, Engine())
    assert sample_answer(policy, base, rows) is None
