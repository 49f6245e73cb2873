"""What the numerical tests share: real chat rows as tokens, tiny models on the processor, and their gradients."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunekit.data import formats, sources
from tunekit.data.render import render_all
from tunekit.data.rows import Conversation, Rejected, Tokens
from tunekit.models import builtin
from tunekit.models.load import Location, load_model, load_tokenizer, locate
from tunekit.models.policy import Policy
from tunekit.objectives.sft import SFT
from tunekit.train.engine import Engine
from tunekit.train.step import StepResult, backward

CHAT = Path(__file__).parents[1] / "examples" / "data" / "chat.jsonl"
CPU = torch.device("cpu")
PAD_ID = 256

# Values of the config that a row of 55 tokens or more must feel, for each architecture of the matrix.
ARCHS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gpt2": {},
    "gemma2": {"sliding_window": 24},
    "mistral": {"sliding_window": 24},
    "phi3": {},
    "gpt_neox": {},
    "mamba": {},
}
PADDED = ("gemma2", "mamba")  # fall back: soft-capped scores; no attention
OWN_HEAD = ("gemma2",)  # soft-capped logits


def conversations() -> list[Conversation]:
    return [row for row in formats.convert(sources.find(str(CHAT)).rows()) if isinstance(row, Conversation)]


@lru_cache(maxsize=1)
def _all_rows() -> tuple[Tokens, ...]:
    rendered = render_all(conversations(), load_tokenizer(locate("tiny-random/llama")))
    return tuple(row for rows in rendered if not isinstance(rows, Rejected) for row in rows)


def chat_rows(count: int, start: int = 0) -> list[Tokens]:
    """`count` real conversations in byte tokens, 55 to 311 each, of unequal trained counts."""
    return list(_all_rows()[start : start + count])


def _folder(arch: str) -> Path:
    folder = builtin.resolve(f"tiny-random/{arch}")
    assert folder is not None
    return folder


def tiny_model(arch: str, dtype: torch.dtype = torch.float32, **config: Any) -> PreTrainedModel:
    """The way a run loads it; `config` overrides what the forward pass reads from the model's config."""
    location = Location(arch, str(_folder(arch)))
    return _prepared(load_model(location, dtype=dtype, device=CPU), config)


def plain_model(arch: str, dtype: torch.dtype = torch.float32, **config: Any) -> PreTrainedModel:
    """The same weights the way transformers alone loads them."""
    return _prepared(AutoModelForCausalLM.from_pretrained(_folder(arch), dtype=dtype), config)


def _prepared(model: PreTrainedModel, config: Mapping[str, Any]) -> PreTrainedModel:
    for key, value in config.items():
        assert hasattr(model.config, key)
        setattr(model.config, key, value)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    # One architecture reads its window when it is built.
    for module in model.modules():
        if getattr(module, "sliding_window", None) is not None and "sliding_window" in config:
            module.sliding_window = config["sliding_window"]
    return model.train()


def tiny_policy(model: nn.Module, dtype: torch.dtype = torch.float32) -> Policy:
    """`model` as a run would use it: proven, in training mode."""
    policy = Policy(model, dtype, PAD_ID)
    policy.prove(chat_rows(2))
    policy.train()
    return policy


def step_gradients(policy: Policy, micro_batches: Sequence[Sequence[Tokens]]) -> tuple[StepResult, dict[str, Tensor]]:
    """One step's loss and gradients by tunekit's own code; the policy's `.grad` are cleared before and after."""
    policy.train().zero_grad()
    batches = [policy.batch(rows) for rows in micro_batches]
    result = backward(policy, SFT, batches, Engine())
    found = gradients(policy.model)
    policy.zero_grad()
    return result, found


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """||ours - theirs|| / ||theirs|| over all tensors together; they must be those of the same names."""
    assert ours.keys() == theirs.keys()
    assert ours
    squares = [
        ((ours[name] - value).double().square().sum(), value.double().square().sum()) for name, value in theirs.items()
    ]
    difference, size = (float(torch.stack(part).sum().sqrt()) for part in zip(*squares, strict=True))
    assert size > 0
    return difference / size


def worst_tensor(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest relative difference of one tensor, each measured against at least 1 % of the whole gradient's norm.

    Without that floor a gradient that is zero in exact arithmetic, such as a key bias, would compare rounding errors.
    """
    assert ours.keys() == theirs.keys()
    total = float(torch.stack([value.double().square().sum() for value in theirs.values()]).sum().sqrt())
    return max(
        float((ours[name] - value).double().norm()) / max(float(value.double().norm()), 0.01 * total)
        for name, value in theirs.items()
    )
