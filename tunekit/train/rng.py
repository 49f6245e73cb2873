"""Every random generator that a step may draw from, as one state to save and put back."""

import random
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """torch on the processor and on the current device, numpy and Python."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    devices = [torch.get_device_module().get_rng_state()] if torch.accelerator.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "device": devices,
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Puts back what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    for device_state in state["device"]:
        torch.get_device_module().set_rng_state(device_state)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
