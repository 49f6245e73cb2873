"""Proofs in a process of their own: what was written must load where nothing of the run is in memory."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tunekit.errors import StorageError

RELOAD_SECONDS = 3600  # loading and a few short forward passes: more is a process that hangs


def in_fresh_process(module: str, arguments: Sequence[str], folder: Path) -> str:
    """The last line that `python -m module arguments` prints.

    Raises `StorageError` about `folder` with what that process said if it fails, or where it does not come to an end.
    """
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()  # the other process needs room for a second copy of the weights
    command = [sys.executable, "-m", module, *arguments]
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RELOAD_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise StorageError(f"{folder}: a fresh process did not load it within {RELOAD_SECONDS} s") from error
    if process.returncode != 0:
        said = process.stderr.strip()[-2000:]
        raise StorageError(f"{folder}: a fresh process cannot load it as it was trained:\n{said}")
    return process.stdout.strip().splitlines()[-1]
