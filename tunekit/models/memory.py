"""What a run needs at least, from the config alone: nothing is downloaded and no weight is made."""

from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM

from tunekit.models import adapters
from tunekit.models.load import Location, load_config

# Bytes an optimizer keeps for each trained weight, by a part of its name; AdamW in fp32 has two states of four.
STATE_BYTES = {"8bit": 2, "lion": 4, "adafactor": 0, "sgd": 0, "adagrad": 4, "rmsprop": 4}


@dataclass(frozen=True)
class MemoryNeed:
    """Weights in all and trained, and what they take in bytes; activations come on top, by batch size and length."""

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    available: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def memory_need(
    location: Location,
    *,
    dtype: torch.dtype,
    optim: str,
    lora: dict[str, Any] | None,
    freeze: dict[str, Any] | None,
    device: torch.device,
) -> MemoryNeed:
    """For a base stored in `dtype` with the adapter `lora` (arguments of `add_lora`), or trained whole in fp32 (None).

    Raises `RecipeError` where the adapter does not fit the model.
    """
    config = load_config(location)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype if lora else torch.float32)
        if lora:
            model = adapters.add_lora(model, **lora)
        elif freeze:
            adapters.freeze(model, **freeze)
    parameters = list(model.parameters())
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    state = next((size for part, size in STATE_BYTES.items() if part in optim), 8)
    return MemoryNeed(
        parameters=sum(each.numel() for each in parameters),
        trained=trained,
        weights=sum(each.numel() * each.element_size() for each in parameters),
        gradients=4 * trained,
        optimizer=state * trained,
        available=_available(device),
    )


def _available(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
