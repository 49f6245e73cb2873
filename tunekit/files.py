"""Where files that are made once are kept, and what tells one file from another: its content."""

import hashlib
import os
from pathlib import Path

BLOCK = 1 << 20


def cache_root() -> Path:
    """The cache folder: the environment's TUNEKIT_CACHE, or ~/.cache/tunekit."""
    return Path(os.environ.get("TUNEKIT_CACHE") or "~/.cache/tunekit").expanduser()


def sha256(*files: Path) -> str:
    """sha256 over the bytes of `files`, one after the other, as hex."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            while block := handle.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
