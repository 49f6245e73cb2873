"""The artefact: its generation config, and the proof that it computes what was trained."""

import math
from pathlib import Path

import pytest
import torch

from tunekit.errors import StorageError
from tunekit.models import builtin, export, fresh
from tunekit.models.export import bound, generation_config, largest_difference
from tunekit.models.load import load_model, load_tokenizer, locate


def test_the_largest_difference_is_over_all_prompts() -> None:
    first = {"0": torch.tensor([1.0, 2.0]), "1": torch.tensor([3.0])}
    assert largest_difference(first, {"0": torch.tensor([1.0, 2.5]), "1": torch.tensor([1.0])}) == 2.0
    assert largest_difference(first, first) == 0.0


@pytest.mark.parametrize("key", ["0", "1", "2"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_logit_that_is_not_finite_makes_the_difference_fail_every_bound(key: str, bad: float) -> None:
    first = {name: torch.zeros(2, 3) for name in "012"}
    second = {name: logits.clone() for name, logits in first.items()}
    second[key][1, 2] = bad
    assert not largest_difference(first, second) <= 1e9
    assert not largest_difference(second, second) <= 1e9


def test_the_bound_is_tight_and_grows_with_the_logits_only() -> None:
    logits = {"0": torch.tensor([-3.0, 1.0]), "1": torch.tensor([2.0])}
    assert bound(logits, torch.float32) == 1e-5
    assert bound(logits, torch.bfloat16) == 2 * 3 / 128
    assert not bound({"0": torch.tensor([math.nan])}, torch.bfloat16) > 1e-5


def test_a_fresh_process_that_hangs_is_an_error_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = builtin.resolve("tiny-random/llama")
    assert isinstance(folder, Path)
    monkeypatch.setattr(fresh, "RELOAD_SECONDS", 0.01)
    with pytest.raises(StorageError, match=r"within 0\.01 s"):
        export.verify_in_fresh_process(folder, {"0": torch.zeros(1)}, [], torch.float32, torch.device("cpu"))


def test_generation_ends_at_every_id_that_ended_a_trained_turn(tmp_path: Path) -> None:
    location = locate("tiny-random/llama")
    model = load_model(location, dtype=torch.float32, device=torch.device("cpu"), attn_implementation=None)
    tokenizer = load_tokenizer(location)
    eos = tokenizer.eos_token_id
    model.generation_config = generation_config(model, tokenizer, {7, eos})
    export.save_artefact(model, model, tokenizer, tmp_path, {})
    assert export.GenerationConfig.from_pretrained(tmp_path).eos_token_id == [7, eos]
