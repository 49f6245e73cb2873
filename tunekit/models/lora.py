"""The LoRA layer of training: base product and low-rank products in one autograd node, in the dtype of the base.

peft's own layer casts its input to the adapter's fp32, multiplies there and casts back: on a bf16 base that is a second
copy of every activation. This one casts the two small matrices instead. Its weights stay fp32 parameters, named and
saved by peft as always; whatever is not plain LoRA (dropout, DoRA, a merged or switched-off adapter) goes through
peft's forward.

On a quantised base the weight is dequantised for the product, and again for its gradient.

Axes: T tokens, I in, O out, R rank.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn

from tunekit.models import quantised

Weight = Tensor | Callable[[], Tensor]  # (O, I) in the dtype of the products, or what dequantises it


class _LoraProduct(torch.autograd.Function):
    """x @ weight.T + bias + scaling * (x @ down.T) @ up.T (Hu et al. 2021, equation 3); `weight`, `bias` frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kept: Weight, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (T, I)
        ctx.dequantise = None if isinstance(kept, Tensor) else kept
        weight = kept if isinstance(kept, Tensor) else kept()
        down, up = down.to(weight.dtype), (up * scaling).to(weight.dtype)  # (R, I), (O, R)
        low = rows @ down.T  # (T, R)
        ctx.save_for_backward(rows, None if ctx.dequantise else weight, down, up, low)
        ctx.scaling, ctx.input_shape = scaling, x.shape
        out = F.linear(rows, weight, bias).addmm_(low, up.T)  # (T, O)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, low = ctx.saved_tensors
        weight = ctx.dequantise() if ctx.dequantise else weight
        grad = grad.reshape(-1, grad.shape[-1])  # (T, O)
        grad_low = grad @ up  # (T, R)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, down).view(*ctx.input_shape)
        grad_up = (low.T @ grad).T.float() * ctx.scaling
        return grad_x, None, None, (grad_low.T @ rows).float(), grad_up, None


class Fused:
    """Goes before one of peft's LoRA layers: its plain case is computed by one autograd node.

    Where a model is evaluated that is peft's own forward, as whoever loads the adapter has it, unless `as_trained`.
    """

    as_trained = False

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self.active_adapters[0]
        base = self.get_base_layer()
        weight = _weight_of(base, x.dtype)
        plain = (
            (self.training or self.as_trained)
            and len(self.active_adapters) == 1
            and not (args or kwargs or self.disable_adapters or self.merged or self.lora_variant)
            and isinstance(self.lora_dropout[name], nn.Identity)
            and weight is not None
        )
        if not plain:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return _LoraProduct.apply(
            x, weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        )


class LoraLinear(Fused, lora.Linear):
    """Around an `nn.Linear`."""


@cache
def _quantised_layers() -> dict[type[nn.Module], type[nn.Module]]:
    """The layers around those of bitsandbytes, which peft has only where that is installed."""
    four, eight = quantised.layer_classes()
    return {
        four: type("LoraLinear4bit", (Fused, lora.Linear4bit), {}),
        eight: type("LoraLinear8bit", (Fused, lora.Linear8bitLt), {}),
    }


def _weight_of(base: nn.Module, dtype: torch.dtype) -> Weight | None:
    """The weight for a product with an input of `dtype`; None where that takes a cast of the input."""
    weight: Any = base.weight
    if quantised.layers_of(base):
        return partial(quantised.weight_of, base, dtype) if quantised.takes(base, dtype) else None
    return weight if weight.dtype == dtype else None


@contextmanager
def as_trained(model: nn.Module) -> Iterator[None]:
    """Within the block evaluation rounds as training does: what is sampled is then what is trained."""
    layers = [module for module in model.modules() if isinstance(module, Fused)]
    for layer in layers:
        layer.as_trained = True
    try:
        yield
    finally:
        for layer in layers:
            layer.as_trained = False


def use_fused_layer(config: LoraConfig, model: nn.Module) -> None:
    """Makes `get_peft_model` build these layers on `model` (peft's hook for custom layers; it is not saved)."""
    layers: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: LoraLinear}
    if quantised.layers_of(model):  # one of 4 bits is an `nn.Linear` too, and the first that fits is taken
        layers = {**_quantised_layers(), **layers}
    config._register_custom_module(layers)
