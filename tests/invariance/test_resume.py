"""A run that is killed and resumed ends as one that never stopped: every bit of weights, moments and generators."""

import json
import os
import shutil
import signal
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from runs import final_state, killed_copy, metric_rows, run, unproven_artefact, write_recipe

from tunekit.errors import Preempted, RecipeError
from tunekit.models.tiny_random import tokenizer
from tunekit.stages import held_out, training
from tunekit.train import checkpoint, loop

__all__ = ["unproven_artefact"]

ACCUMULATION = {
    # 5 micro-batches an epoch: 5 + 3 steps
    1: (),
    # 3 + 2 micro-batches an epoch, three epochs: 6 steps
    3: ("train.gradient_accumulation_steps=3", "train.num_train_epochs=3"),
}
STOPS = {1: (1, 4, 5, 7), 3: (1, 3, 4, 5)}  # first step, middle, end of an epoch, last but one


def assert_same_end(resumed: Path, whole: Path) -> None:
    assert final_state(resumed) == final_state(whole)
    assert metric_rows(resumed) == metric_rows(whole)


def check_every_stop(folder: Path, stops: tuple[int, ...], *overrides: str) -> None:
    recipe = write_recipe(folder)
    result = run(recipe, *overrides)
    whole = folder / "run"
    for stop in stops:
        copy = killed_copy(whole, folder / f"killed-{stop}", stop)
        again = run(recipe, *overrides, "resume=auto", f"output_dir={copy}")
        assert_same_end(copy, whole)
        for key in ("before", "after", "steps", "best_step", "tokens", "trained_tokens", "sample"):
            assert again.get(key) == result.get(key), key
        shutil.rmtree(copy)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit", "adafactor"])
def test_lora_resumes_bit_for_bit(tmp_path: Path, optim: str, accumulation: int, dropout: float) -> None:
    overrides = (f"train.optim={optim}", f"adapter.dropout={dropout}", *ACCUMULATION[accumulation])
    # Below 4096 elements bitsandbytes keeps 32 bits.
    check_every_stop(tmp_path, STOPS[accumulation], *overrides, "adapter.r=64")
    _, state = final_state(tmp_path / "run")
    assert ("torch.uint8" in str(state["optimizer"])) == (optim == "adamw_8bit")


@pytest.mark.parametrize(
    "overrides",
    [
        ("adapter.type=none", "adapter.r=16", "train.optim=adamw_8bit"),
        ("data.packing=true", "data.max_length=200", "train.per_device_train_batch_size=1", "adapter.dropout=0.1"),
        ("train.activation_checkpointing=true", "adapter.dropout=0.1", "train.sampling=sequential"),
        ("model.dtype=bfloat16", "adapter.modules_to_save=[lm_head]", "train.weight_decay=0.1"),
        ("eval.steps=2", "eval.metrics=[exact_match]", "eval.max_new_tokens=4", "adapter.use_dora=true"),
    ],
    ids=["full-8bit", "packing", "checkpointing", "bfloat16", "metrics"],
)
def test_other_ways_to_train_resume_bit_for_bit(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    check_every_stop(tmp_path, (2, 5), *overrides)


MIXTURE = "data.train=[{path: PATH, weight: 3}, {path: PATH, weight: 1}]"
STREAM = ("data.streaming=true", "data.max_length=400", "train.max_steps=12", "data.shuffle_buffer=5")


@pytest.mark.parametrize(
    "overrides",
    [
        (MIXTURE, "train.num_train_epochs=1.5"),
        (*STREAM, "train.gradient_accumulation_steps=3", "adapter.dropout=0.1"),
        (*STREAM, MIXTURE, "data.eval_split=0", "data.packing=true"),
        (*STREAM, "train.sampling=sequential", "data.shuffle_buffer=1"),
    ],
    ids=["mixture", "stream", "stream-mixture-packed", "stream-sequential"],
)
def test_mixtures_and_streams_resume_bit_for_bit(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    path = str(tmp_path / "chat.jsonl")
    check_every_stop(tmp_path, (1, 4, 7), *(each.replace("PATH", path) for each in overrides))


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_a_stream_with_rejected_and_overlong_rows_resumes_bit_for_bit(tmp_path: Path, overlong: str) -> None:
    recipe, chats = write_recipe(tmp_path), tmp_path / "chat.jsonl"
    good = chats.read_text(encoding="utf-8").splitlines()
    long, short = (json.dumps({"prompt": "x", "completion": "y" * length}) for length in (500, 5))
    lines = [*good[:4], '{"messages": 7}', "torn", *good[4:], '{"messages": [{"role": "user", "content": "Hi"}]}']
    chats.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "more.jsonl").write_text("\n".join([long, '{"prompt": 7}', short, long]) + "\n", encoding="utf-8")
    train = f"data.train=[{chats}, {tmp_path / 'more.jsonl'}]"
    overrides = (*STREAM, train, "data.max_rejected=4", f"data.overlong={overlong}", "data.eval_split=2")
    overrides = (*overrides, "train.max_steps=16")
    result = run(recipe, *overrides)
    whole = tmp_path / "run"
    assert result["streamed"]["rejected"] == len((whole / "rejected.jsonl").read_text().splitlines()) == 4
    assert result["streamed"]["overlong"] >= 2
    for stop in (1, 2, 3, 4):
        copy = killed_copy(whole, tmp_path / f"killed-{stop}", stop)
        again = run(recipe, *overrides, "resume=auto", f"output_dir={copy}")
        assert_same_end(copy, whole)
        assert again["streamed"] == result["streamed"]
        assert (copy / "rejected.jsonl").read_bytes() == (whole / "rejected.jsonl").read_bytes()


class Tomorrow(date):
    @classmethod
    def today(cls) -> date:
        return date.fromordinal(date.today().toordinal() + 1)


@pytest.mark.parametrize("overrides", [(), STREAM], ids=["rows", "stream"])
def test_a_resumed_run_tells_a_chat_template_the_day_on_which_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    recipe, template = write_recipe(tmp_path), tmp_path / "dated.jinja"
    template.write_text("{{ strftime_now('%d %B') }}\n" + tokenizer().chat_template)
    overrides = (*overrides, f"data.chat_template={template}")
    run(recipe, *overrides)
    copy = killed_copy(tmp_path / "run", tmp_path / "killed", 2)
    monkeypatch.setattr(training, "date", Tomorrow)
    run(recipe, *overrides, "resume=auto", f"output_dir={copy}")
    assert_same_end(copy, tmp_path / "run")
    assert run(recipe, *overrides, f"output_dir={tmp_path / 'next'}")
    assert final_state(tmp_path / "next") != final_state(tmp_path / "run"), "the day is in what is trained on"


def test_the_best_step_and_early_stopping_survive_a_kill(tmp_path: Path) -> None:
    """With the sign turned the first evaluation is the best, and the run stops itself two evaluations later."""
    overrides = (
        "eval.greater_is_better=true",
        "eval.steps=2",
        "eval.early_stopping_patience=2",
        "eval.load_best_model_at_end=true",
        "save.total_limit=1",
    )
    recipe = write_recipe(tmp_path)
    result = run(recipe, *overrides)
    whole = tmp_path / "run"
    assert (result["best_step"], result["steps"]) == (2, 6)
    assert [path.name for path in checkpoint.steps_in(whole / "checkpoints")] == ["step-2", "step-6"]
    # Also from the end: what is left to do then is the artefact.
    for stop in (2, 6):
        copy = killed_copy(whole, tmp_path / f"killed-{stop}", stop)
        again = run(recipe, *overrides, "resume=auto", f"output_dir={copy}")
        assert_same_end(copy, whole)
        assert (again["best_step"], again["steps"], again["after"]) == (2, 6, result["after"])


def signalled(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Sends this process SIGTERM at the start of the given call (from 1) of a function the stage or the loop uses."""
    module = next(module for module in (held_out, loop) if hasattr(module, name))
    real, calls = getattr(module, name), []

    def wrapper(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, wrapper)


@pytest.mark.parametrize(
    ("name", "call", "step"),
    [("backward", 4, 3), ("update", 3, 3), ("held_out_loss", 2, 5), ("held_out_loss", 3, 8)],
    ids=["in-backward", "in-update", "in-evaluation", "in-last-evaluation"],
)
def test_a_preempted_run_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int, step: int
) -> None:
    """Calls are counted with those of the start: the longest batch is tried, and the untrained model is evaluated."""
    overrides = ("adapter.dropout=0.1", "save.steps=100")
    recipe = write_recipe(tmp_path)
    run(recipe, *overrides)
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        signalled(patch, name, call)
        with pytest.raises(Preempted, match=f"step {step} "):
            run(recipe, *overrides, f"output_dir={stopped}")
    assert [path.name for path in checkpoint.steps_in(stopped / "checkpoints")][-1] == f"step-{step}"
    run(recipe, *overrides, "resume=auto", f"output_dir={stopped}")
    assert_same_end(stopped, tmp_path / "run")


def test_another_recipe_or_other_data_are_not_resumed(tmp_path: Path) -> None:
    recipe, template = write_recipe(tmp_path), tmp_path / "other.jinja"
    template.write_text("X" + tokenizer().chat_template)
    run(recipe)
    resume = ("resume=auto", f"output_dir={killed_copy(tmp_path / 'run', tmp_path / 'killed', 3)}")
    for override in (
        "train.learning_rate=0.02",
        "adapter.r=8",
        "train.seed=1",
        "data.loss_on=all",
        "data.packing=true",
        "data.overlong=drop",
        "data.system=Be kind.",
        f"data.eval={tmp_path / 'chat.jsonl'}",
        f"data.train=[{{path: {tmp_path / 'chat.jsonl'}, weight: 2}}]",
        f"data.chat_template={template}",
    ):
        with pytest.raises(RecipeError, match="written by another run"):
            run(recipe, *resume, *([override] if "eval=" not in override else [override, "~data.eval_split"]))
    run(recipe, *resume, "save.steps=3", "train.logging_steps=5")  # what does not touch the training may change
