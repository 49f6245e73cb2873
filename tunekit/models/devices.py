"""What a processor or GPU has and does: memory, speed, power; hours, cost and energy of an amount of arithmetic."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tunekit.errors import RecipeError

GIB, MIB = 2**30, 2**20
PRICES = Path(__file__).with_name("prices.yaml")
# Of the peak; an assumption, as it depends on width, length and kernels: dense models in bf16 mostly reach 0.3 to 0.5.
UTILISATION = 0.35
CONTEXT = int(0.6 * GIB)  # of CUDA and its libraries in each process; an assumption
PRODUCT = 1024  # side of the matrices by which this processor is measured


@dataclass(frozen=True)
class Device:
    """memory: bytes;  flops: of dense matrix products in a second, in 16 bits with sums in 32;  watts: at most

    Of GPUs: memory as their driver reports it, or, of h200 and rtx3090, as it is sold (an assumption); speed and power
    as their vendor states them for the SXM kind where there is one.
    """

    name: str
    memory: int
    flops: float
    watts: float
    utilisation: float = UTILISATION
    source: str = "vendor's data sheet; utilisation 0.35 is an assumption"


DEVICES = {
    each.name: each
    for each in (
        Device("h100-80g", 81559 * MIB, 989e12, 700),
        Device("h200", 141 * 10**9, 989e12, 700),
        Device("a100-80g", 80 * GIB, 312e12, 400),
        Device("a100-40g", 40 * GIB, 312e12, 400),
        Device("l40s", 46068 * MIB, 362e12, 350),
        Device("rtx4090", 24564 * MIB, 165e12, 450),
        Device("rtx3090", 24 * GIB, 71e12, 350),
        Device("t4", 15360 * MIB, 8.1e12, 70),  # in fp32: it has no bf16
    )
}


def find_device(name: str, memory: int, dtype: torch.dtype) -> Device:
    """The device of that name; `memory` is what this processor has free. Raises `RecipeError`."""
    if name == "cpu":
        speed = _measured(dtype)
        return Device(
            "cpu", memory, speed, 15.0 * (torch.get_num_threads()), 0.5, "measured product; utilisation 0.5 and 15 W a "
            "thread are assumptions",
        )  # fmt: skip
    if name not in DEVICES:
        raise RecipeError(f"--gpu: {name}: accepted: {', '.join(DEVICES)}, cpu")
    return DEVICES[name]


def _measured(dtype: torch.dtype) -> float:
    """Operations a second of one product on this processor, the best of a few."""
    side = torch.randn(PRODUCT, PRODUCT, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        side @ side
        seconds.append(time.perf_counter() - start)
    return 2 * PRODUCT**3 / min(seconds)


def read_prices(file: Path | None) -> dict[str, Any]:
    """Of each device `{price_per_hour, watts}`, with `currency`. Raises `RecipeError` for a file that says less."""
    path = file or PRICES
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise RecipeError(f"--prices: {path}: {error}", "Give a YAML file like tunekit/models/prices.yaml.") from error
    devices = content.get("devices") if isinstance(content, dict) else None
    if not isinstance(devices, dict):
        raise RecipeError(f"--prices: {path}: has no devices", f"Give a YAML file like {PRICES}.")
    for name, values in devices.items():
        price = values.get("price_per_hour") if isinstance(values, dict) else None
        if not isinstance(price, int | float) or isinstance(price, bool) or price < 0:
            raise RecipeError(f"--prices: {path}: devices.{name}.price_per_hour: {price}: a number is accepted")
    return {"currency": str(content.get("currency", "")), "source": str(content.get("source", path)), **devices}


def cost(flops: float, device: Device, count: int, prices: dict[str, Any]) -> dict[str, Any]:
    """Hours of wall time on `count` devices, price and energy; None where the prices do not name the device."""
    hours = flops / (device.flops * device.utilisation * count) / 3600
    known = prices.get(device.name, {})
    watts = known.get("watts", device.watts)
    return {
        "hours": hours,
        "price": known["price_per_hour"] * hours * count if "price_per_hour" in known else None,
        "currency": prices["currency"],
        "kwh": watts * hours * count / 1000,
        "utilisation": device.utilisation,
        "speed_source": device.source,
        "price_source": prices["source"],
    }
