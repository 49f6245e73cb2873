"""Models for use: what a name loads computes what plain transformers and peft compute from the same folders."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from tunekit.errors import RecipeError
from tunekit.models import adapters, builtin, export
from tunekit.models.load import DTYPES, base_of, load_model, load_tokenizer, locate
from tunekit.models.serve import context_of, load_for_inference

LLAMA = "tiny-random/llama"
IDS = torch.tensor([[72, 105, 257, 10, 200, 3, 3, 258]])  # (1, T)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run: an adapter that changes the model, in model/ with its passport."""
    location = locate(LLAMA)
    model = load_model(location, dtype=torch.float32, device=torch.device("cpu"), attn_implementation=None)
    adapted = adapters.add_lora(model, r=4, alpha=8, dropout=0.0, target_modules="all-linear", init_lora_weights=False)
    passport = {"base_model": {"name": LLAMA, "revision": None, "sha256": None}}
    export.save_artefact(adapted, model, load_tokenizer(location), tmp_path / "run" / "model", passport)
    return tmp_path / "run"


@pytest.mark.parametrize("below", ["", "model"])
def test_a_run_folder_gives_the_adapter_on_its_base(run_folder: Path, below: str) -> None:
    model, _ = load_for_inference(str(run_folder / below), dtype="float32")
    oracle = AutoPeftModelForCausalLM.from_pretrained(run_folder / "model", dtype=torch.float32).eval()
    assert not model.training
    assert torch.equal(logits(model), logits(oracle))
    assert not torch.allclose(logits(model), logits(load_for_inference(LLAMA, dtype="float32")[0]), atol=1e-2)


def test_a_model_folder_and_a_builtin_name_give_the_same_weights_in_the_dtype_asked_for() -> None:
    folder = builtin.resolve(LLAMA)
    for name, dtype in ((LLAMA, "float32"), (str(folder), "bfloat16")):
        model, tokenizer = load_for_inference(name, dtype=dtype)
        assert model.dtype == DTYPES[dtype]
        assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])))
        assert tokenizer.chat_template


def test_a_builtin_base_that_is_gone_is_found_by_the_name_in_the_passport(run_folder: Path) -> None:
    point_base_at(run_folder / "model", "/nowhere/model")
    assert base_of(locate(str(run_folder))).path == str(builtin.resolve(LLAMA))


def test_without_a_passport_the_base_is_the_one_peft_recorded(run_folder: Path) -> None:
    (run_folder / "model" / "tunekit.json").unlink()
    assert base_of(locate(str(run_folder))).path == str(builtin.resolve(LLAMA))
    point_base_at(run_folder / "model", None)
    with pytest.raises(RecipeError, match="does not say which base"):
        load_for_inference(str(run_folder))


def test_a_base_of_another_shape_is_named_with_the_adapter(run_folder: Path) -> None:
    (run_folder / "model" / "tunekit.json").unlink()
    point_base_at(run_folder / "model", "tiny-random/gpt2")
    with pytest.raises(RecipeError, match=r"model cannot be put on its base tiny-random/gpt2: Target modules"):
        load_for_inference(str(run_folder))


def test_a_run_that_is_not_finished_says_how_to_finish_it(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "model")
    (run_folder / "checkpoints" / "step-3").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"not finished: it has 1 checkpoints(.|\n)*recipe.yaml resume=auto"):
        load_for_inference(str(run_folder))


def test_damaged_weights_are_an_error_for_people(run_folder: Path, tmp_path: Path) -> None:
    adapter = run_folder / "model" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:500])
    with pytest.raises(RecipeError, match="header"):
        load_for_inference(str(run_folder))
    folder = shutil.copytree(builtin.resolve(LLAMA), tmp_path / "base")  # type: ignore[arg-type]
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(RecipeError, match="header"):
        load_for_inference(str(folder))


@pytest.mark.parametrize("name", ["adapter_config.json", "tunekit.json"])
@pytest.mark.parametrize("content", [b'{"base_model": {"na', b"\xff", b"[]", b'{"base_model": {}}'])
def test_damaged_facts_are_an_error_for_people(run_folder: Path, name: str, content: bytes) -> None:
    if name == "adapter_config.json":
        (run_folder / "model" / "tunekit.json").unlink()
    (run_folder / "model" / name).write_bytes(content)
    with pytest.raises(RecipeError, match=name):
        base_of(locate(str(run_folder)))


@pytest.mark.parametrize("content", [b"{% for m in messages %}", b"\xff{{ messages }}"])
def test_a_damaged_chat_template_is_an_error_for_people(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "chat.jinja"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"data\.chat_template: .*chat\.jinja"):
        load_tokenizer(locate(LLAMA), str(file))


def test_an_answer_ends_at_the_end_token_of_model_and_of_tokenizer(tmp_path: Path) -> None:
    folder = shutil.copytree(builtin.resolve(LLAMA), tmp_path / "base")  # type: ignore[arg-type]
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    model, tokenizer = load_for_inference(str(folder))
    assert model.generation_config.eos_token_id == [7, tokenizer.eos_token_id]


def test_the_context_is_read_under_every_name_it_has() -> None:
    assert context_of(load_for_inference(LLAMA)[0]) == 2048  # max_position_embeddings
    assert context_of(load_for_inference("tiny-random/gpt2")[0]) == 2048  # n_positions
    assert context_of(load_for_inference("tiny-random/mamba")[0]) is None


def point_base_at(adapter: Path, base: str | None) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
