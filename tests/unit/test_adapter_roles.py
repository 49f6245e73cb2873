"""Further adapters on the backbone of a policy leave it as it is, and are what they say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import chat_rows, tiny_model
from torch import Tensor

from tunekit.models import adapter_roles as roles
from tunekit.models import adapters
from tunekit.models.actor import Actor, Value, reference_of

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "only the embedding": {"target_modules": ["embed_tokens"]},
    "dora": {"use_dora": True},
    "whole modules": {"modules_to_save": ["lm_head"]},
    "whole modules in bfloat16": {"modules_to_save": ["embed_tokens"]},
}


def actor(way: str, *, trained: bool) -> Actor:
    """A policy with an adapter, which has moved where it is `trained`."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if "bfloat16" in way else torch.float32
    model = tiny_model("llama", dtype)
    settings = {"target_modules": "all-linear", **WAYS[way]}
    adapted = adapters.add_lora(model, r=4, alpha=8.0, dropout=0.0, **settings)
    if trained:
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
    made = Actor(adapted, dtype, 256)
    made.chunked_head = False  # a head that is trained whole is a wrapper
    made.act(temperature=1.0)
    return made.eval()


@torch.no_grad()
def logprobs(each: Actor) -> Tensor:
    return each.logprobs(each.batch(chat_rows(2)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("trained", [False, True])
def test_policy_reference_and_value_function_are_one_at_the_start(way: str, trained: bool) -> None:
    policy = actor(way, trained=trained)
    before = logprobs(policy)
    name = roles.add_value(policy.model)
    policy.act(temperature=1.0, value=Value(policy.causal.config.hidden_size, name))
    reference = reference_of(policy)
    assert torch.equal(logprobs(policy), before), "the base is as it was"
    bound = 0.0 if trained else 1e-2 if policy.dtype == torch.bfloat16 else 1e-5
    with torch.no_grad():
        batch = policy.batch(chat_rows(2))
        assert (reference(batch) - before).abs().max() <= bound
        with roles.acting(policy.model, name):
            assert torch.equal(policy.logprobs(batch), before)
    with_gradient = {key for key, weight in policy.model.named_parameters() if weight.requires_grad}
    assert {key for key in with_gradient if ".value" in key} and not {
        key for key in with_gradient if ".reference" in key
    }
    own = {key for key in with_gradient if ".default" in key}
    assert len(own) == len(with_gradient) - len(own)


def test_the_gradient_of_values_goes_to_their_adapter_alone() -> None:
    policy = actor("plain", trained=True)
    policy.act(temperature=1.0, value=Value(policy.causal.config.hidden_size, roles.add_value(policy.model)))
    torch.nn.init.normal_(policy.value.score.weight)  # type: ignore[union-attr]
    policy.train()
    output = policy(policy.batch(chat_rows(2)))
    output[:, 2].sum().backward()
    moved = {key for key, weight in policy.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moved and all(".value." in key or key.startswith("value.") for key in moved)
    policy.zero_grad()
    policy(policy.batch(chat_rows(2)))[:, 0].sum().backward()
    moved = {key for key, weight in policy.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moved and all(".default." in key for key in moved)


def test_saving_two_adapters_as_one_leaves_a_value_function_trained(tmp_path: Path) -> None:
    adapters.save_adapter(actor("plain", trained=True).model, tmp_path)  # type: ignore[arg-type]
    stacked = adapters.stack_adapter(
        tiny_model("llama"), str(tmp_path), r=4, alpha=8.0, dropout=0.0, target_modules="all-linear"
    )
    roles.add_value(stacked)
    before = {key for key, weight in stacked.named_parameters() if weight.requires_grad}
    with adapters.joined(stacked):
        pass
    assert {key for key, weight in stacked.named_parameters() if weight.requires_grad} == before


def test_a_reward_that_changes_the_base_does_not_stand_beside_it(tmp_path: Path) -> None:
    for number, (way, beside) in enumerate({"plain": True, "pissa": False, "whole modules": False}.items()):
        folder = tmp_path / str(number)
        actor(way, trained=True).model.save_pretrained(folder)  # type: ignore[operator]
        assert roles.stands_beside(folder) == beside
