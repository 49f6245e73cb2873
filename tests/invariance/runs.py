"""Whole runs of the sft stage on a tiny model and real chat rows, in this process, and what is left of them on disk."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import CHAT
from torch import Tensor

from tunekit.recipe.load import load
from tunekit.stages import artefact, sft
from tunekit.train import checkpoint

TRAIN_ROWS, EVAL_ROWS = 9, 2


def write_recipe(folder: Path) -> Path:
    """A recipe over 9 rows to train on and 2 held out; checkpoints after every step, all of them kept."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = sorted(CHAT.read_text(encoding="utf-8").splitlines(), key=len)[: TRAIN_ROWS + EVAL_ROWS]
    (folder / "chat.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{name_or_path: tiny-random/llama, dtype: float32}}\n"
        f"adapter: lora\n"
        f"data: {{train: {folder / 'chat.jsonl'}, eval_split: {EVAL_ROWS}}}\n"
        f"train: {{per_device_train_batch_size: 2, learning_rate: 0.01, num_train_epochs: 1.5}}\n"
        f"save: {{steps: 1, total_limit: 100}}\n"
        f"output_dir: {folder / 'run'}\n"
    )
    return recipe


@pytest.fixture(autouse=True)
def unproven_artefact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof of the artefact costs a process of ten seconds a run, and says nothing about training."""
    monkeypatch.setattr(artefact, "write_artefact", lambda *arguments: 0.0)


def run(recipe: Path, *overrides: str) -> dict[str, Any]:
    return sft.run(load(recipe, overrides))


def diverge(recipe: Path, *overrides: str) -> dict[str, Any]:
    """A learning rate near the end of fp32's range, which no recipe may ask for, makes the second step infinite."""
    resolved = load(recipe, ("train.warmup_steps=0", *overrides))
    settings = resolved.recipe.train.model_copy(update={"learning_rate": 1e37})
    return sft.run(replace(resolved, recipe=resolved.recipe.model_copy(update={"train": settings})))


def killed_copy(source: Path, destination: Path, last_step: int) -> Path:
    """The run folder as a kill soon after the checkpoint of `last_step` would leave it.

    `metrics.jsonl` is whole and `rejected.jsonl` torn: a kill may come long after the checkpoint. Other files of a
    finished run are gone.
    """
    (destination / "checkpoints").mkdir(parents=True)
    shutil.copy(source / "metrics.jsonl", destination)
    if (rejected := source / "rejected.jsonl").exists():
        (destination / rejected.name).write_bytes(rejected.read_bytes()[:-9])
    for path in checkpoint.steps_in(source / "checkpoints"):
        if int(path.name.removeprefix("step-")) <= last_step:
            shutil.copytree(path, destination / "checkpoints" / path.name)
    return destination


def final_state(folder: Path) -> tuple[bytes, Any]:
    """The newest checkpoint: the bytes of its tensors, and the rest of it without clock readings."""
    newest = checkpoint.steps_in(folder / "checkpoints")[-1]
    state = checkpoint.load(newest)
    assert isinstance(state["optimizer"], dict) and state["optimizer"]["state"]
    assert all(isinstance(value, Tensor) for value in state["parameters"].values())
    del state["run"]["seconds"]
    return (newest / "tensors.safetensors").read_bytes(), _plain(state)


def metric_rows(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def _plain(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return str(tree.dtype), tuple(tree.shape)  # the values are compared as bytes
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return tree
