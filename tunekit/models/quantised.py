"""Quantised bases: frozen weights in 4 or 8 bits under an adapter. The only door to bitsandbytes for models.

4bit is NF4 in blocks of 64 with scales that are quantised again (Dettmers et al. 2023, arXiv:2305.14314), 8bit is int8
with one scale for each output (Dettmers et al. 2022, arXiv:2208.07339). Embeddings and output layer stay as they are.

In both the weights alone are quantised: a product dequantises them and runs in the dtype of its input, by the same
arithmetic in training and evaluation. That is not how bitsandbytes evaluates:

- On processors with AVX512-BF16 its first evaluation repacks 4-bit weights for a kernel without a derivative, through
  which later training steps then go too: their gradients are wrong, and the loss does not show it.
- In 8 bits it evaluates with int8 activations, and takes columns with an outlier anywhere in the batch out of that: an
  example changes with its neighbours, and what is evaluated is not what is trained.

Axes: T tokens, I in, O out.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from tunekit.errors import MissingEnvironment, RecipeError

DEVICES = ("cpu", "cuda")
# New in a reward model, and small: in the precision of the model, as their weights have to be known exactly later.
HEADS = [rf"(.*\.)?{name}" for name in ("score", "classifier", "pre_classifier", "pooler")]


def options(
    quantization: str, dtype: torch.dtype, device: torch.device, *, has_new_head: bool = False
) -> dict[str, Any]:
    """What `from_pretrained` takes to load in `quantization` (4bit, 8bit) on `device`; {} for "none".

    `has_new_head`: a sequence classifier. Raises `MissingEnvironment` where bitsandbytes or such a device is missing.
    """
    if quantization == "none":
        return {}
    _library()
    if device.type not in DEVICES:
        raise MissingEnvironment(
            f"model.quantization: {quantization}: bitsandbytes has no products for {device.type}",
            f"It runs on {' and '.join(DEVICES)}; set model.quantization: none.",
        )
    config = BitsAndBytesConfig(
        load_in_4bit=quantization == "4bit",
        load_in_8bit=quantization == "8bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=HEADS if has_new_head else None,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def refuse_stored(config: PretrainedConfig, name: str) -> None:
    """Raises `RecipeError` for a checkpoint of bitsandbytes' own: nothing could later be merged into it."""
    stored = getattr(config, "quantization_config", None) or {}
    if stored.get("quant_method") == "bitsandbytes":
        raise RecipeError(
            f"model: {name} is stored in {'4bit' if stored.get('load_in_4bit') else '8bit'} by bitsandbytes",
            "Name the model that it was made from, and set model.quantization: an adapter is merged into that one.",
        )


def _library() -> Any:
    try:
        import bitsandbytes.nn  # takes seconds: only where it is used
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingEnvironment(
            f"model.quantization: bitsandbytes cannot be loaded: {error}",
            "pip install bitsandbytes, or set model.quantization: none.",
        ) from error
    return bitsandbytes


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The quantised layers of `model`, below an adapter too."""
    return [module for module in model.modules() if _bits(module)]


def quantization_of(model: nn.Module) -> str:
    """What the recipe would call it: 4bit, 8bit, or none."""
    return next((_bits(layer) for layer in layers_of(model)), "none")


def _bits(module: nn.Module) -> str:
    """By the class of its weight, as one asks also where bitsandbytes is not installed."""
    own = module._parameters.get("weight")  # and not what a layer of peft's passes on
    return {"Params4bit": "4bit", "Int8Params": "8bit"}.get(type(own).__name__, "")


def layer_classes() -> tuple[type[nn.Module], type[nn.Module]]:
    """Those of 4 and of 8 bits."""
    library = _library()
    return library.nn.Linear4bit, library.nn.Linear8bitLt


def takes(layer: Any, dtype: torch.dtype) -> bool:
    """Whether the product of `layer` with an input of `dtype` runs in that dtype."""
    return _bits(layer) == "8bit" or layer.compute_dtype == dtype


def weight_of(layer: Any, dtype: torch.dtype) -> Tensor:
    """`(O, I)`, dequantised as its own product does it."""
    if _bits(layer) == "8bit":
        return _dequantised(layer.state.CB, layer.state.SCB, dtype)
    weight: Tensor = _library().functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.to(dtype)


def num_weights(parameter: Tensor) -> int:
    """How many weights `parameter` stands for: one of 4 bits holds two in each element."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def same_in_evaluation(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """`model`, freshly loaded, with layers that compute in evaluation what they compute in training.

    Raises `RecipeError` where it has no layers that can be quantised, or reads their weights itself (Mamba).
    """
    if not layers_of(model):
        raise RecipeError(
            f"model.quantization: {name} has no linear layers to quantise", "Set model.quantization: none."
        )
    for layer in layers_of(model):
        if _bits(layer) == "4bit":
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        else:
            layer.init_8bit_state()  # type: ignore[operator]
            layer.forward = MethodType(_int8_forward, layer)
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 4, dtype=torch.long, device=model.device))
    except (torch.OutOfMemoryError, NotImplementedError):  # the latter: an attention, for which padding is tried later
        return model
    except RuntimeError as error:
        raise RecipeError(
            f"model.quantization: {name} does not run with quantised layers: {error}", "Set model.quantization: none."
        ) from error
    return model


def _int8_forward(layer: Any, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    product: Tensor = _Int8Product.apply(x, layer.state.CB, layer.state.SCB, bias)
    return product


class _Int8Product(torch.autograd.Function):
    """x @ weight.T + bias of frozen `weight` = codes (O, I) * scales (O) / 127; it is dequantised anew each time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scales)
        return F.linear(x, _dequantised(codes, scales, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales = ctx.saved_tensors
        return grad @ _dequantised(codes, scales, grad.dtype), None, None, None


def _dequantised(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """`(O, I)` in `dtype`, which has room for codes of 8 bits: rounded once."""
    return codes.to(dtype).mul_((scales / 127)[:, None])
