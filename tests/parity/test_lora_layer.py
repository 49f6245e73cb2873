"""The fused LoRA layer is peft's: the same outputs and gradients in fp32, and within rounding in bf16."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn

from tunekit.models.lora import LoraLinear

TOKENS, IN, OUT, RANK = (2, 37), 48, 80, 6


def layers(dtype: torch.dtype, bias: bool, **options: object) -> tuple[LoraLinear, lora.Linear]:
    """Ours and peft's around one frozen base, with the same weights; B is not zero."""
    torch.manual_seed(3)
    base = nn.Linear(IN, OUT, bias=bias).to(dtype).requires_grad_(False)
    config = LoraConfig(r=RANK, lora_alpha=15, **options)
    made = [kind(base, "default", config, r=RANK, lora_alpha=15) for kind in (LoraLinear, lora.Linear)]
    nn.init.normal_(made[0].lora_B["default"].weight, std=0.3)
    for layer in made:  # what get_peft_model does: the adapter is fp32 beside any base
        for adapter in (layer.lora_A, layer.lora_B):
            adapter.float()
    made[1].load_state_dict(made[0].state_dict())
    return made[0].train(), made[1].train()


def forward_and_backward(layer: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(*TOKENS, IN, generator=generator).to(dtype).requires_grad_()
    upstream = torch.randn(*TOKENS, OUT, generator=generator).to(dtype)
    output = layer(x)
    output.backward(upstream)
    assert x.grad is not None
    found = {"output": output.detach(), "x": x.grad}
    return found | {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_output_and_every_gradient(dtype: torch.dtype, bound: float, bias: bool, rslora: bool) -> None:
    ours, theirs = layers(dtype, bias, use_rslora=rslora)
    found, expected = forward_and_backward(ours, dtype), forward_and_backward(theirs, dtype)
    assert found.keys() == expected.keys() == {"output", "x", "lora_A.default.weight", "lora_B.default.weight"}
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert relative(found[name], value) < bound, name


def test_bf16_errs_no_more_than_peft_does() -> None:
    """Against the product in fp64: multiplying in bf16 instead of casting up costs at most a small factor."""
    ours, theirs = layers(torch.bfloat16, True)
    exact, _ = layers(torch.bfloat16, True)
    expected = forward_and_backward(exact.double(), torch.float64)
    found, peft = forward_and_backward(ours, torch.bfloat16), forward_and_backward(theirs, torch.bfloat16)
    for name, value in expected.items():
        assert relative(found[name], value) < 3 * relative(peft[name], value) + 4e-3, name


def test_no_gradient_of_x_is_made_where_none_is_wanted() -> None:
    ours, theirs = layers(torch.float32, True)
    x = torch.randn(*TOKENS, IN)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None)
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-4)
