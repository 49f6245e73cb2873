"""Whole runs on a base in 4 and 8 bits, as a user starts them, on a tiny random model; and what is made of them."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import tunekit
from preferences import pairs, unprove, write_rows
from safetensors.torch import load_file
from tiny import CHAT

from tunekit.models import builtin
from tunekit.models.policy import Policy
from tunekit.recipe.load import load
from tunekit.stages import full_base, sft
from tunekit.stages.assemble import make_policy
from tunekit.stages.base import find_base
from tunekit.stages.read import read_rows
from tunekit.train.engine import Engine

MODEL = "tiny-random/llama"
RECIPE = f"""
model: {{name_or_path: {MODEL}, quantization: 4bit, dtype: float32}}
adapter: {{type: lora, r: 4, target_modules: [q_proj, down_proj]}}
data: {{train: {CHAT}, eval_split: 0.1, max_length: 200, overlong: drop}}
train: {{max_steps: 2, learning_rate: 1e-2, per_device_train_batch_size: 4}}
eval: {{steps: 1}}
save: {{steps: 1}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("quantised")
    (made / "sft.yaml").write_text(RECIPE + "output_dir: sft\n")
    return made


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    done = tunekit("sft", "sft.yaml", folder=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "sft" / "result.json").read_text())
    return found


def test_the_cost_of_quantisation_stands_in_the_result(
    folder: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    unprove(monkeypatch)
    whole = tunekit(
        "sft", "sft.yaml", "model.quantization=none", "output_dir=whole", "train.max_steps=1", folder=folder
    )
    assert whole.returncode == 0, whole.stderr
    expected = json.loads((folder / "whole" / "result.json").read_text())["before"]
    assert result["before"]["eval_loss_full"] == expected["eval_loss"]
    assert 0.005 < abs(result["before"]["eval_loss"] - expected["eval_loss"]) < 0.5
    assert "eval_loss_full" not in expected
    contract = json.loads((folder / "whole" / "manifest.json").read_text())["contract"]
    assert contract["model.quantization"] is None  # as in checkpoints from before there was the key
    assert result["weights"]["all"] - result["weights"]["trained"] == sum(
        weight.numel() for weight in load_file(Path(str(builtin.resolve(MODEL))) / "model.safetensors").values()
    )


def test_the_artefact_says_its_base_and_reloads_as_it_was_trained(
    folder: Path, result: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert result["reload_difference"] == 0
    passport = json.loads((folder / "sft" / "model" / "tunekit.json").read_text())
    assert passport["base_model"]["quantization"] == "4bit"
    done = tunekit("chat", "sft", "--prompt", "Hello", "--max-new-tokens", 4, folder=folder)
    assert done.returncode == 0 and f"base {MODEL} in 4bit, as in training" in caplog.text


def test_another_quantization_is_not_resumed(folder: Path, result: dict[str, Any]) -> None:
    done = tunekit("sft", "sft.yaml", "model.quantization=8bit", "resume=auto", folder=folder)
    assert done.returncode == 2
    assert "model.quantization: '4bit' then, '8bit' now" in done.stderr


def test_a_merge_goes_into_the_full_base_and_says_both_differences(folder: Path, result: dict[str, Any]) -> None:
    done = tunekit("merge", "sft", folder=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "sft" / "merged" / "tunekit.json").read_text())
    assert report["merge_difference"] < 1e-4 and report["quantised_difference"] > 0.05
    assert f"to the adapter on its quantised base {report['quantised_difference']:.3g}" in done.stdout
    merged = load_file(folder / "sft" / "merged" / "model.safetensors")
    adapter = load_file(folder / "sft" / "model" / "adapter_model.safetensors")
    full = load_file(Path(str(builtin.resolve(MODEL))) / "model.safetensors")
    changed = 0
    for name, weight in full.items():
        low = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        delta: Any = 0
        if f"{low}A.weight" in adapter:
            delta, changed = 2 * adapter[f"{low}B.weight"] @ adapter[f"{low}A.weight"], changed + 1
        torch.testing.assert_close(merged[name], weight + delta, rtol=0, atol=1e-6)
    assert changed == 4


def test_training_goes_on_from_the_adapter_in_8_bits_and_starts_from_its_reference(
    folder: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    unprove(monkeypatch)
    write_rows(folder / "pairs.jsonl", pairs(12))
    recipe = {
        "model": {"name_or_path": "sft", "quantization": "8bit"},
        "adapter": {"type": "lora", "start_from": "continue"},
        "data": {"train": "pairs.jsonl", "eval_split": 4},
        "train": {"max_steps": 1, "per_device_train_batch_size": 4, "optim": "paged_adamw_8bit"},
        "output_dir": "dpo",
    }
    (folder / "dpo.yaml").write_text(json.dumps(recipe))
    done = tunekit("dpo", "dpo.yaml", folder=folder)
    assert done.returncode == 0, done.stderr
    before = json.loads((folder / "dpo" / "result.json").read_text())["before"]
    assert before["eval_loss"] == pytest.approx(0.693147, abs=1e-3) and abs(before["eval_margin"]) < 0.02
    assert 0 < abs(before["eval_nll"] - before["eval_nll_full"]) < 0.1


@pytest.mark.cluster
def test_a_reward_model_is_kept_whole_and_measured_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unprove(monkeypatch)
    write_rows(folder / "pairs.jsonl", pairs(12))
    recipe = RECIPE.replace(str(CHAT), "pairs.jsonl").replace("0.1", "4") + "output_dir: reward\nstage: reward\n"
    (folder / "reward.yaml").write_text(recipe)
    done = tunekit("reward", "reward.yaml", folder=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "reward" / "result.json").read_text())
    assert found["merge_difference"] < 1e-4 < found["quantised_difference"]
    assert "with its adapter in the full base, as it is kept" in caplog.text
    assert not {"quantization_config"} & json.loads((folder / "reward" / "model" / "config.json").read_text()).keys()


def test_the_full_base_is_gone_before_the_quantised_one_is_loaded(folder: Path) -> None:
    recipe = load(folder / "sft.yaml", ["output_dir=x"], "sft").recipe
    base, engine = find_base(recipe), Engine()
    rows = read_rows(recipe, base)
    first: list[weakref.ref[Policy]] = []

    def make(*arguments: Any) -> Policy:
        assert not [each for each in first if each() is not None]
        policy = make_policy(*arguments)
        first.append(weakref.ref(policy))
        return policy

    gc.collect()
    objective = sft.STAGE.objective(recipe, False)
    policy, cost = full_base.beside_full_base(make, recipe, objective, base, rows, engine, measure=True)
    assert len(first) == 2 and first[1]() is policy and list(cost) == ["eval_loss_full"]


@pytest.mark.cluster
def test_nothing_is_measured_where_no_rows_are_held_out_and_it_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unprove(monkeypatch)
    done = tunekit(
        "sft", "sft.yaml", "data.eval_split=0", "eval.steps=null", "output_dir=none", "train.max_steps=1", folder=folder
    )
    assert done.returncode == 0, done.stderr
    assert "what quantisation costs is not measured: there are no held-out rows" in caplog.text
    assert json.loads((folder / "none" / "result.json").read_text())["before"] == {}
