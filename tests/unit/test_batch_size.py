"""`train.per_device_train_batch_size: auto`: what is chosen fits by the estimate, and a step keeps its rows."""

import itertools
import json
from pathlib import Path

import pytest

from tunekit.errors import MemoryExceeded, RecipeError
from tunekit.recipe.load import load, load_text
from tunekit.recipe.schema import Recipe
from tunekit.recipe.show import dump
from tunekit.stages import batch_size
from tunekit.stages.base import find_base
from tunekit.stages.plan_need import estimate
from tunekit.stages.read import read_rows
from tunekit.stages.rows import Rows
from tunekit.train.engine import Engine


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    chats = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ab" * 50}]}
        for _ in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: tiny-random/llama\ndata: {tmp_path}/rows.jsonl\noutput_dir: {tmp_path}/out\n")
    return file


def test_a_chosen_batch_fits_and_keeps_the_rows_of_a_step(recipe: Path) -> None:
    resolved = load(recipe, ["train.global_batch_size=12", f"{batch_size.KEY}=auto"]).recipe
    base = find_base(resolved)
    read = read_rows(batch_size.readable(resolved), base)
    for size in (12, 6, 3):
        need = estimate(batch_size.with_batch(resolved, size), base, read, "t4").peak
        assert batch_size.choose_batch(resolved, base, read, "t4", need) == size
        assert estimate(batch_size.with_batch(resolved, 2 * size), base, read, "t4").peak > need
    settled = batch_size.with_batch(resolved, 3).train
    assert (settled.batch_size, settled.gradient_accumulation_steps, settled.global_batch_size) == (3, 4, 12)
    with pytest.raises(MemoryExceeded, match="auto: 1 row"):
        batch_size.choose_batch(resolved, base, read, "t4", 1000)


def test_a_resumed_run_keeps_the_batch_of_its_checkpoint(recipe: Path) -> None:
    def read(recipe: Recipe) -> Rows:
        raise AssertionError("rows are read for nothing")

    resolved = load(recipe, [f"{batch_size.KEY}=auto"]).recipe
    start = {"contract": {batch_size.KEY: 2}}
    assert batch_size.settled(resolved, find_base(resolved), Engine(), start, read).train.batch_size == 2


def test_a_batch_that_does_not_fit_is_halved_until_one_does() -> None:
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > 2:
            raise MemoryExceeded("the longest batch does not fit")

    assert batch_size.halved_until_it_fits(attempt, 16, 16) == 2 and tried == [16, 8, 4, 2]
    with pytest.raises(MemoryExceeded):
        batch_size.halved_until_it_fits(lambda size: attempt(size + 2), 4, 4)


def test_another_size_of_micro_batches_leaves_the_rows_of_each_step(recipe: Path) -> None:
    resolved = load(recipe, ["train.per_device_train_batch_size=8", "train.gradient_accumulation_steps=2"]).recipe
    loader = read_rows(resolved, find_base(resolved)).loader

    def steps() -> list[list[list[str]]]:
        return [
            [[row.answers[0].source for row in rows] for rows in step.micro_batches]
            for step in loader.steps(0, lambda: None)
        ]

    before = steps()
    batch_size.resize(loader, 2)
    after = steps()
    assert [len(step[0]) for step in before[:1] + after[:1]] == [8, 2] and len(before) == len(after)
    for ours, theirs in zip(before, after, strict=True):
        assert sorted(itertools.chain(*ours)) == sorted(itertools.chain(*theirs))
    assert len(loader.longest(False)) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((), (1, 8, 8)),
        (("distributed.processes=3",), (1, 9, 3)),
        (("train.global_batch_size=32",), (1, 32, 32)),
    ],
)
def test_auto_has_eight_rows_in_a_step_and_loads_again(
    recipe: Path, settings: tuple[str, ...], words: tuple[int, int, int]
) -> None:
    train = load(recipe, [f"{batch_size.KEY}=auto", *settings]).recipe
    found = train.train
    assert (found.batch_size, found.global_batch_size, found.gradient_accumulation_steps) == words
    assert found.per_device_train_batch_size == "auto"
    assert load_text(dump(train), "dump").recipe == train


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("train.gradient_accumulation_steps=4",), "give global_batch_size"),
        (("train.global_batch_size=9", "distributed.processes=2"), "9 is not a multiple"),
        (("stage=dpo", "objective.loss=aot"), "does not go with loss aot"),
    ],
)
def test_what_does_not_go_with_auto_is_told(recipe: Path, settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load(recipe, [f"{batch_size.KEY}=auto", *settings])
