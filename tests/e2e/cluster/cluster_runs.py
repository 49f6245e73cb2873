"""A run that is slow enough to be hit, on a tiny random model, and what it left."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[3] / "examples" / "data" / "chat.jsonl"
STEPS = 80
PATIENCE = 150  # seconds


def recipe(folder: Path, **lines: str) -> Path:
    keys = {
        "model": "tiny-random/llama",
        "adapter": "{type: lora, dropout: 0.1}",
        "data": f"{{train: {DATA}, eval_split: 8}}",
        "train": f"{{max_steps: {STEPS}, per_device_train_batch_size: 4, learning_rate: 0.01}}",
        "save": "{steps: 10}",
        "output_dir": "out",
        **lines,
    }
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return path


def tunekit(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tunekit", *map(str, arguments)]


def undisturbed(folder: Path) -> Path:
    """The same run as two processes on one machine."""
    folder.mkdir()
    command = tunekit("sft", recipe(folder), "distributed.processes=2")
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert process.returncode == 0, process.stderr
    return folder / "out"


def wait_for(what: Callable[[], object], log: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, f"waited in vain\n{log()}"
        time.sleep(0.2)


def steps(output_dir: Path) -> list[int]:
    """Those that were logged, in the order in which they were made."""
    file = output_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row["step"] for row in rows if "loss" in row]


def result(output_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output_dir / "result.json").read_text())
    return found


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs left the same adapter, bit for bit."""
    file = Path("model", "adapter_model.safetensors")
    return (one / file).read_bytes() == (other / file).read_bytes()
