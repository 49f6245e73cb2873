"""`tunekit env`: what this machine and this installation are, and whether they meet what pyproject.toml asks for.

The floors are read from the installed package's own metadata, so pyproject.toml is the one place that states them.
"""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import tunekit
from tunekit.errors import MissingEnvironment
from tunekit.files import cache_root

OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
GIB = 2**30


@dataclass(frozen=True, slots=True)
class _Library:
    """One requirement of the package; `extra` is the optional set that asks for it, None for what is always needed."""

    name: str
    specifier: SpecifierSet
    extra: str | None

    @property
    def installed(self) -> str | None:
        try:
            return importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return None


def report() -> dict[str, Any]:
    """Machine, device, dtype, library versions, missing optional libraries, cache and offline switches, ready for JSON.

    Raises MissingEnvironment when the package runs without being installed.
    """
    # Here, since both import transformers, which `check` and `render` do without.
    from tunekit.models import builtin
    from tunekit.models.load import default_device, default_dtype

    libraries = _libraries()
    device = default_device()
    return {
        "tunekit": tunekit.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "cpu_bf16": default_dtype(torch.device("cpu")) is torch.bfloat16,
        "device": str(device),
        "device_name": _device_name(device),
        "dtype": str(default_dtype(device)).removeprefix("torch."),
        "libraries": {each.name: each.installed for each in libraries if each.installed or not each.extra},
        "missing_optional": {
            each.name: f"pip install 'tunekit[{each.extra}]'" for each in libraries if each.extra and not each.installed
        },
        "cache": str(cache_root()),
        "builtin_models": builtin.present(),
        "offline": {switch: os.environ.get(switch) for switch in OFFLINE_SWITCHES},
    }


def check(report: dict[str, Any]) -> list[str]:
    """One sentence for each thing in `report` that is absent or below its floor, with what to do; empty if none is."""
    problems = []
    python = SpecifierSet(_metadata()["Requires-Python"])
    if report["python"] not in python:
        problems.append(f"Python is {report['python']} and must be {python}: make a new environment with such a Python")
    for library in _libraries():
        installed = report["libraries"].get(library.name)
        wanted = f"{library.name}{library.specifier}"
        if installed is None and not library.extra:
            problems.append(f"{library.name} is not installed: pip install '{wanted}'")
        elif installed is not None and not library.specifier.contains(installed, prereleases=True):
            problems.append(f"{library.name} is {installed} and must be {library.specifier}: pip install -U '{wanted}'")
    return problems


def render(report: dict[str, Any]) -> str:
    """`report` as lines for people, one fact a line."""
    offline = [f"{switch}={value}" for switch, value in report["offline"].items() if value is not None]
    rows = {
        "tunekit": f"{report['tunekit']} (Python {report['python']}, {report['platform']})",
        "machine": f"{report['cores']} cores, {report['memory_gib']} GiB, bf16 in hardware: {_yes(report['cpu_bf16'])}",
        "device": f"{report['device']} ({report['device_name']}), dtype auto = {report['dtype']}",
        "cache": report["cache"],
        "built-in models": ", ".join(report["builtin_models"]) or "none yet (built on first use)",
        "offline": ", ".join(offline) or "no switch is set",
    }
    rows |= {name: version or "not installed" for name, version in report["libraries"].items()}
    rows |= {name: f"not installed (optional): {fix}" for name, fix in report["missing_optional"].items()}
    width = max(map(len, rows)) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in rows.items())


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _metadata() -> Any:
    try:
        return importlib.metadata.metadata("tunekit")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingEnvironment(
            "tunekit runs from a folder and is not installed, so its requirements are unknown", "pip install -e ."
        ) from error


def _libraries() -> list[_Library]:
    """The requirements in the metadata, each library once: as always needed, else under the extra that installs it."""
    metadata = _metadata()
    extras: list[str] = sorted(set(metadata.get_all("Provides-Extra") or ()) - {"test"})
    found: dict[str, _Library] = {}
    for requirement in map(Requirement, metadata.get_all("Requires-Dist") or ()):
        marker = requirement.marker
        extra = next((name for name in extras if marker and marker.evaluate({"extra": name})), None)
        if requirement.name == "tunekit" or (marker and not extra):
            continue  # an extra made of other extras, the tools of our own tests, or another platform's library
        found.setdefault(requirement.name, _Library(requirement.name, requirement.specifier, extra))
    return list(found.values())


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return platform.processor() or platform.machine()
    properties = torch.cuda.get_device_properties(device)
    return f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / GIB:.0f} GiB each"
