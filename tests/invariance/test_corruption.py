"""A damaged checkpoint costs the steps after the last good one and nothing else; a bad step costs no weight."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from runs import diverge, final_state, killed_copy, metric_rows, run, unproven_artefact, write_recipe
from safetensors.torch import load_file, save_file
from tiny import chat_rows, tiny_model, tiny_policy

from tunekit.errors import Diverged, StorageError
from tunekit.models import builtin
from tunekit.models.adapters import add_lora
from tunekit.objectives.sft import SFT
from tunekit.train import checkpoint
from tunekit.train.engine import Engine
from tunekit.train.optim import make_optimizer
from tunekit.train.step import backward, update

__all__ = ["unproven_artefact"]


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(bytes(data))


def test_a_run_resumes_before_the_damage_says_so_and_ends_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = write_recipe(tmp_path)
    overrides = ("adapter.dropout=0.1", "train.num_train_epochs=2")
    run(recipe, *overrides)
    copy = killed_copy(tmp_path / "run", tmp_path / "killed", 8)
    flip_a_bit(copy / "checkpoints" / "step-8" / "tensors.safetensors")
    (copy / "checkpoints" / "step-7" / "manifest.json").write_bytes(b"")
    (copy / "checkpoints" / f"{checkpoint.STAGING}step-9-cut").mkdir()
    with caplog.at_level(logging.INFO, logger="tunekit"):
        run(recipe, *overrides, "resume=auto", "save.total_limit=1", f"output_dir={copy}")
    assert "damaged checkpoint passed over" in caplog.text
    assert "step-8" in caplog.text and "step-7" in caplog.text
    assert f"resuming from {copy / 'checkpoints' / 'step-6'}" in caplog.text
    assert final_state(copy) == final_state(tmp_path / "run")
    assert metric_rows(copy) == metric_rows(tmp_path / "run")
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"step-10"}


@pytest.mark.parametrize("resume", ["auto", "a path"])
def test_nothing_good_is_an_error_and_the_folder_is_left_alone(tmp_path: Path, resume: str) -> None:
    recipe = write_recipe(tmp_path)
    run(recipe)
    copy = killed_copy(tmp_path / "run", tmp_path / "killed", 2)
    for step in (1, 2):
        flip_a_bit(copy / "checkpoints" / f"step-{step}" / "state.json")
    choice = resume if resume == "auto" else str(copy / "checkpoints" / "step-2")
    with pytest.raises(StorageError) as caught:
        run(recipe, f"resume={choice}", f"output_dir={copy}")
    assert caught.value.exit_code == 4
    result = json.loads((copy / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("failed", 4)
    assert len(checkpoint.steps_in(copy / "checkpoints")) == 2
    assert metric_rows(copy) == metric_rows(tmp_path / "run")


@pytest.mark.parametrize("where", ["lora_A", "lora_B", "embed_tokens"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_step_that_is_not_finite_changes_nothing(where: str, value: float) -> None:
    model = add_lora(tiny_model("llama"), r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")
    policy = tiny_policy(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer("adamw_torch", parameters, lr=0.1, weight_decay=0.1)

    def one_step() -> None:
        batch = policy.batch(chat_rows(2))
        result = backward(policy, SFT, [batch], Engine())
        update(result, list(parameters.values()), optimizer, 1.0)

    one_step()
    with torch.no_grad():
        poisoned = next(p for name, p in model.named_parameters() if where in name)
        poisoned[chat_rows(1)[0].ids[3] if where == "embed_tokens" else 0, 0] = value
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    moments = [{key: item.clone() for key, item in state.items()} for state in optimizer.state.values()]
    with pytest.raises(Diverged, match="not finite; the update was not made") as caught:
        one_step()
    assert caught.value.exit_code == 10
    for name, before in weights.items():
        torch.testing.assert_close(parameters[name].detach(), before, rtol=0, atol=0, equal_nan=True)
    for state, old in zip(optimizer.state.values(), moments, strict=True):
        assert all(torch.equal(state[key], item) for key, item in old.items())


def test_a_run_that_diverges_ends_with_its_last_good_weights(tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        diverge(write_recipe(tmp_path), "eval.steps=100")
    assert_told(tmp_path / "run", "not finite; the update was not made", "train.learning_rate")
    [last] = checkpoint.steps_in(tmp_path / "run" / "checkpoints")
    state = checkpoint.load(last)
    assert last.name == "step-1" and state["run"]["step"] == 1
    assert all(value.isfinite().all() for value in state["parameters"].values())


def test_a_model_that_is_broken_from_the_start_is_told_before_the_first_update(tmp_path: Path) -> None:
    source = builtin.resolve("tiny-random/llama")
    assert source is not None
    folder = shutil.copytree(source, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Diverged):
        run(write_recipe(tmp_path), f"model.name_or_path={folder}", "data.packing=true")
    assert_told(tmp_path / "run", "not finite before any training")
    assert not (tmp_path / "run" / "checkpoints").exists()


def assert_told(folder: Path, *words: str) -> None:
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("failed", 10)
    assert all(word in result["error"] for word in words)
    assert not (folder / "model").exists()
