"""What merge refuses: it then leaves nothing behind."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunekit.errors import GateFailed, RecipeError
from tunekit.models import adapters, builtin, export
from tunekit.models.load import load_model, load_tokenizer, locate, weights_hash
from tunekit.stages import merge

LLAMA = "tiny-random/llama"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    location = locate(LLAMA)
    model = load_model(location, dtype=torch.float32, device=torch.device("cpu"), attn_implementation=None)
    adapted = adapters.add_lora(model, r=4, alpha=8, dropout=0.0, target_modules="all-linear", init_lora_weights=False)
    passport = {"base_model": {"name": LLAMA, "revision": None, "sha256": weights_hash(location)}}
    export.save_artefact(adapted, model, load_tokenizer(location), tmp_path / "adapter", passport)
    return tmp_path / "adapter"


def refused(adapter: Path, error: type[Exception], match: str, max_difference: float | None = None) -> None:
    folder = adapter.parent / "merged"
    with pytest.raises(error, match=match):
        merge.run(str(adapter), output=str(folder), max_difference=max_difference)
    assert [path.name for path in adapter.parent.iterdir()] == [adapter.name]


def test_a_difference_above_the_bound(adapter: Path) -> None:
    refused(adapter, GateFailed, r"is \d.*e-0\d, the bound 1e-12; nothing was written", 1e-12)


@pytest.fixture
def bf16_adapter(tmp_path: Path) -> Path:
    """An adapter on a bfloat16 base whose logits are as large as those of a trained model."""
    source = locate(LLAMA)
    base = load_model(source, dtype=torch.bfloat16, device=torch.device("cpu"), attn_implementation=None)
    base.get_output_embeddings().weight.data *= 100
    base.save_pretrained(tmp_path / "base" / "model")
    load_tokenizer(source).save_pretrained(tmp_path / "base" / "model")
    location = locate(str(tmp_path / "base" / "model"))
    model = load_model(location, dtype=torch.bfloat16, device=torch.device("cpu"), attn_implementation=None)
    adapted = adapters.add_lora(model, r=4, alpha=8, dropout=0.0, target_modules="all-linear", init_lora_weights=False)
    passport = {"base_model": {"name": location.name, "revision": None, "sha256": weights_hash(location)}}
    export.save_artefact(adapted, model, load_tokenizer(location), tmp_path / "run" / "adapter", passport)
    return tmp_path / "run" / "adapter"


def test_a_bfloat16_base_is_judged_by_its_own_rounding(bf16_adapter: Path) -> None:
    report = merge.run(str(bf16_adapter), output=None, max_difference=None)
    assert report["dtype"] == "bfloat16" and report["reload_difference"] == 0
    assert 0.3 < report["merge_difference"] <= report["bound"] == 2 * report["rounding_difference"]


def test_a_merge_that_loses_the_adapter_is_more_than_rounding(
    bf16_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    refused(bf16_adapter, GateFailed, "nothing was written")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_difference", [None, 1e30])
def test_weights_that_are_not_finite_under_any_bound(adapter: Path, bad: float, max_difference: float | None) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = bad
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    refused(adapter, GateFailed, "weights that are not finite", max_difference)


def test_another_base_than_that_of_the_training(adapter: Path) -> None:
    passport = json.loads((adapter / "tunekit.json").read_text())
    passport["base_model"]["sha256"] = "0" * 64
    (adapter / "tunekit.json").write_text(json.dumps(passport))
    refused(adapter, RecipeError, "are not those that the adapter was trained on")


def test_a_folder_that_is_no_adapter(tmp_path: Path) -> None:
    shutil.copytree(builtin.resolve(LLAMA), tmp_path / "whole")  # type: ignore[arg-type]
    refused(tmp_path / "whole", RecipeError, "there is no adapter to merge")
    with pytest.raises(RecipeError, match="no local folder"):
        merge.run("someone/adapter", output=None, max_difference=None)


def test_a_destination_in_use_is_left_as_it_is(adapter: Path) -> None:
    folder = adapter / "merged"  # the default of an adapter that lies alone
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(RecipeError, match="exists and is not empty"):
        merge.run(str(adapter), output=None, max_difference=None)
    assert [path.name for path in folder.iterdir()] == ["mine"]
