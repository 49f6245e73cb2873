"""The LoRA layer of training: base product and low-rank products in one autograd node, in the dtype of the base.

peft's own layer casts its input to the adapter's fp32, multiplies there and casts back: on a bf16 base that is a second
copy of every activation. This one casts the two small matrices instead. Its weights stay fp32 parameters, named and
saved by peft as always; whatever is not plain LoRA (dropout, DoRA, a merged or switched-off adapter) goes through
peft's forward.

Axes: T tokens, I in, O out, R rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn


class _LoraProduct(torch.autograd.Function):
    """x @ weight.T + bias + scaling * (x @ down.T) @ up.T (Hu et al. 2021, equation 3); `weight`, `bias` frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (T, I)
        down, up = down.to(weight.dtype), (up * scaling).to(weight.dtype)  # (R, I), (O, R)
        low = rows @ down.T  # (T, R)
        ctx.save_for_backward(rows, weight, down, up, low)
        ctx.scaling, ctx.input_shape = scaling, x.shape
        out = F.linear(rows, weight, bias).addmm_(low, up.T)  # (T, O)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])  # (T, O)
        grad_low = grad @ up  # (T, R)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, down).view(*ctx.input_shape)
        grad_up = (low.T @ grad).T.float() * ctx.scaling
        return grad_x, None, None, (grad_low.T @ rows).float(), grad_up, None


class LoraLinear(lora.Linear):
    """peft's LoRA layer around an `nn.Linear`, its plain case computed by one autograd node.

    Where a model is evaluated that is peft's own forward, as whoever loads the adapter has it, unless `as_trained`.
    """

    as_trained = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self.active_adapters[0]
        base = self.get_base_layer()
        plain = (
            (self.training or self.as_trained)
            and len(self.active_adapters) == 1
            and not (args or kwargs or self.disable_adapters or self.merged or self.lora_variant)
            and isinstance(self.lora_dropout[name], nn.Identity)
            and x.dtype == base.weight.dtype
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        return _LoraProduct.apply(
            x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        )


@contextmanager
def as_trained(model: nn.Module) -> Iterator[None]:
    """Within the block evaluation rounds as training does: what is sampled is then what is trained."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    for layer in layers:
        layer.as_trained = True
    try:
        yield
    finally:
        for layer in layers:
            layer.as_trained = False


def use_fused_layer(config: LoraConfig) -> None:
    """Makes `get_peft_model` build `LoraLinear` for linear layers (peft's hook for custom layers; it is not saved)."""
    config._register_custom_module({nn.Linear: LoraLinear})
