"""The artefact: a folder that plain transformers or peft loads, proven by a fresh process before a run says "done"."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tunekit.models.adapters import PeftModel, save_adapter
from tunekit.models.fresh import in_fresh_process
from tunekit.models.load import PASSPORT

PROMPTS = (
    "The capital of France is",
    "Write a short poem about the sea.",
    "SELECT name FROM employees WHERE",
    "1, 1, 2, 3, 5, 8, 13,",
)


@torch.no_grad()
def fixed_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """fp32 logits `(L, V)` of `model` on each of the fixed prompts, one prompt a forward pass."""
    model.eval()
    logits = {}
    for i, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
        logits[str(i)] = model(ids, use_cache=False).logits[0].float().cpu().contiguous()
    return logits


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Maximum absolute difference of two sets of fixed logits; NaN if there is one in either."""
    # Not Python's max, which passes over a NaN that is not its first argument.
    return float(torch.stack([(first[key] - second[key]).abs().max() for key in first]).max())


def bound(logits: dict[str, Tensor], dtype: torch.dtype) -> float:
    """What the largest of `logits` may move by when the same weights are loaded again in `dtype`.

    Loaded on the same device they are equal bit for bit, except a module that was trained in fp32 beside a base in
    `dtype`: it is rounded to that when loaded, which moves the logits by about one rounding step.
    """
    largest = max(float(values.abs().max()) for values in logits.values())
    return max(1e-5, 2 * torch.finfo(dtype).eps * largest)


@contextmanager
def serving_attention(causal: PreTrainedModel) -> Iterator[None]:
    """Within the block `causal` attends as a freshly loaded model does, so that logits compare bit for bit."""
    trained_with = causal.config._attn_implementation
    causal.set_attn_implementation("sdpa" if causal._supports_sdpa else "eager")
    try:
        yield
    finally:
        causal.set_attn_implementation(trained_with)


def generation_config(
    causal: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, terminators: Iterable[int] = ()
) -> GenerationConfig:
    """The model's generation config, ending also at the tokenizer's end token and at `terminators`.

    Chat templates often have a terminator of their own, which a base model's tokenizer does not name as its end token.
    """
    generation = GenerationConfig.from_dict(causal.generation_config.to_dict())
    ends = {*_as_list(generation.eos_token_id), *_as_list(tokenizer.eos_token_id), *terminators}
    generation.eos_token_id = sorted(ends) or None
    generation.pad_token_id = tokenizer.pad_token_id
    return generation


def save_artefact(
    model: nn.Module,
    causal: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    passport: dict[str, Any],
) -> None:
    """Writes weights (or the adapter alone), tokenizer with its template, generation config, passport to `folder`.

    The adapter belongs to the base that the passport names, where that is a local folder.
    """
    if isinstance(model, PeftModel):
        save_adapter(model, folder, passport["base_model"].get("path"))
    else:
        model.save_pretrained(folder, state_dict=weights_of(model))  # type: ignore[operator]
    generation_config(causal, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / PASSPORT).write_text(json.dumps(passport, indent=1) + "\n")


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """What `state_dict` gives, which of a model that is divided over processes gives only the parts."""
    buffers = {
        f"{path}.{name}".removeprefix("."): value
        for path, module in model.named_modules()
        for name, value in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
    return {**dict(model.named_parameters(remove_duplicate=False)), **buffers}


def verify_in_fresh_process(
    folder: Path,
    logits: dict[str, Tensor],
    served: Sequence[dict[str, Any]],
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """Loads `folder` with plain transformers/peft in another process; the largest difference of its logits to `logits`.

    `device` is the one that `logits` were computed on: another one rounds differently. Raises `StorageError` with what
    that process said if it cannot load the folder, renders one of `served` differently, or does not come to an end.
    """
    with tempfile.TemporaryDirectory() as scratch:
        expected = Path(scratch) / "logits.safetensors"
        save_file(logits, expected)
        examples = Path(scratch) / "served.json"
        examples.write_text(json.dumps(list(served)), encoding="utf-8")
        arguments = [str(folder), str(expected), str(examples), str(dtype).removeprefix("torch."), str(device)]
        return float(in_fresh_process("tunekit.models.reload", arguments, folder))


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
