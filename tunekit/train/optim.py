"""Optimizers and learning-rate schedules, by the names that transformers gives them."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Adafactor, get_scheduler

log = logging.getLogger("tunekit")


def _bitsandbytes(name: str, **options: Any) -> Callable[..., Optimizer]:
    def make(groups: list[dict[str, Any]], **common: Any) -> Optimizer:
        import bitsandbytes.optim  # takes seconds to import: only where it is used

        return getattr(bitsandbytes.optim, name)(groups, **options, **common)

    return make


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw_torch": torch.optim.AdamW,
    "adamw_torch_fused": partial(torch.optim.AdamW, fused=True),
    "adamw_8bit": _bitsandbytes("AdamW", optim_bits=8),
    "adamw_bnb_8bit": _bitsandbytes("AdamW", optim_bits=8),
    "paged_adamw_32bit": _bitsandbytes("AdamW", is_paged=True),
    "paged_adamw_8bit": _bitsandbytes("AdamW", optim_bits=8, is_paged=True),
    "ademamix": _bitsandbytes("AdEMAMix"),
    "ademamix_8bit": _bitsandbytes("AdEMAMix", optim_bits=8),
    "lion_32bit": _bitsandbytes("Lion"),
    "lion_8bit": _bitsandbytes("Lion", optim_bits=8),
    "paged_lion_32bit": _bitsandbytes("Lion", is_paged=True),
    "paged_lion_8bit": _bitsandbytes("Lion", optim_bits=8, is_paged=True),
    "adafactor": partial(Adafactor, scale_parameter=False, relative_step=False),
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}


def make_optimizer(name: str, parameters: dict[str, nn.Parameter], *, lr: float, weight_decay: float) -> Optimizer:
    """The optimizer `name` over named `parameters`; vectors (biases, norms) are not decayed, as in transformers."""
    if name.startswith("paged") and not torch.cuda.is_available():
        log.info("train.optim: %s: without a CUDA device its states are not paged", name)
    decayed = [p for p in parameters.values() if p.ndim > 1]
    plain = [p for p in parameters.values() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return OPTIMIZERS[name]([group for group in groups if group["params"]], lr=lr)


def make_schedule(name: str, optimizer: Optimizer, *, warmup_steps: int, num_steps: int) -> LRScheduler:
    """`cosine`, `linear` or `constant`, each with a linear warm-up (transformers' plain `constant` would ignore it)."""
    name = "constant_with_warmup" if name == "constant" else name
    return get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=num_steps)
