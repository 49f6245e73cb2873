"""Checkpoints that are whole or not there: staged, fsynced, hashed, renamed into place, verified before they are used.

`checkpoints/step-N/` holds `tensors.safetensors` (every tensor of the state), `state.json` (the rest of it) and
`manifest.json` (size and sha256 of each file, the contract a resumed run must keep, and its own sha256). No pickle is
written or read.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunekit.errors import RecipeError, StorageError
from tunekit.files import sha256

log = logging.getLogger("tunekit")

MANIFEST = "manifest.json"
STAGING = ".tmp-"


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """A folder to write into that becomes `destination` in one rename, its files fsynced, if the block succeeds.

    Raises `StorageError` (disk full, no permission); `destination` is then as it was before. A kill between the two
    renames that replace a destination leaves it under another name, from which `sweep` brings it back.
    """
    token = uuid.uuid4().hex[:8]
    staging = destination.with_name(f"{STAGING}{destination.name}-new-{token}")
    old = destination.with_name(f"{STAGING}{destination.name}-old-{token}")
    try:
        staging.mkdir(parents=True)
        yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # safetensors writes 0600, which a server under another user cannot read
            _fsync(file)
        _fsync(staging)
        if destination.exists():
            destination.rename(old)
        staging.rename(destination)
        _fsync(destination.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{destination}: cannot be written: {error}", "Free some space or choose another output_dir."
        ) from error
    finally:
        if old.exists() and not destination.exists():
            old.rename(destination)
        shutil.rmtree(staging, ignore_errors=True)


def save(folder: Path, step: int, state: Any, contract: dict[str, Any]) -> Path:
    """Writes `state` (nested dicts, lists, tensors, numbers, strings) as `folder/step-N` and returns that path."""
    destination = folder / f"step-{step}"
    with staged(destination) as staging:
        tensors: dict[str, Tensor] = {}
        skeleton = _split(state, tensors, set())
        save_file(tensors, staging / "tensors.safetensors")
        (staging / "state.json").write_text(json.dumps(skeleton))
        files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in staging.iterdir()}
        manifest = {"step": step, "contract": contract, "files": files}
        (staging / MANIFEST).write_text(json.dumps({**manifest, "sha256": _seal(manifest)}, indent=1))
    return destination


def load(path: Path) -> Any:
    """The state that `save` wrote to `path`; raises `StorageError` naming the file that is damaged."""
    verify(path)
    return _join(json.loads((path / "state.json").read_text()), load_file(path / "tensors.safetensors"))


def verify(path: Path) -> dict[str, Any]:
    """The manifest of `path`, after it and every file have the size and hash it names; else `StorageError`."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        if manifest.pop("sha256") != _seal(manifest):
            raise StorageError(f"{path / MANIFEST}: its sha256 is not the one in it")
        for name, expected in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != expected["bytes"]:
                raise StorageError(f"{path / name}: {size} bytes, the manifest says {expected['bytes']}")
            if sha256(path / name) != expected["sha256"]:
                raise StorageError(f"{path / name}: its sha256 is not the one in the manifest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path}: no whole checkpoint: {type(error).__name__}: {error}") from error
    return manifest


def is_whole(path: Path) -> bool:
    """Whether `path` is a checkpoint that verifies; says what is wrong with one that is there and does not."""
    try:
        verify(path)
    except StorageError as error:
        log.info("damaged checkpoint passed over: %s", error)
        return False
    return True


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that verifies, said aloud where newer ones do not; None if there never was one.

    Raises `StorageError` if there are checkpoints and none is whole: starting afresh would hide the loss.
    """
    candidates = steps_in(folder)
    for path in reversed(candidates):
        if is_whole(path):
            return path
    if candidates:
        raise StorageError(
            f"{folder}: none of {len(candidates)} checkpoints is whole",
            "Remove the folder to start again, or give resume: PATH of a good copy.",
        )
    return None


def steps_in(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, by step (never by time: clocks jump and copies are new)."""
    numbered = [(int(m[1]), path) for path in folder.glob("step-*") if (m := re.fullmatch(r"step-(\d+)", path.name))]
    return [path for _, path in sorted(numbered)]


def rotate(folder: Path, *, step: int, total_limit: int, best_step: int | None) -> None:
    """Keeps the newest `total_limit` checkpoints up to `step`, the run's, and the best one however old it is.

    Later ones are neither counted nor removed: a run resumed before them, as they are damaged, will write them again.
    """
    reached = [path for path in steps_in(folder) if int(path.name.removeprefix("step-")) <= step]
    for path in reached[:-total_limit]:
        if path.name != f"step-{best_step}":
            shutil.rmtree(path)


def sweep(folder: Path) -> None:
    """Removes what a killed save left in `folder`; what it was about to replace comes back."""
    for path in folder.glob(f"{STAGING}*"):
        replaced = re.fullmatch(rf"{re.escape(STAGING)}(.+)-old-\w+", path.name)
        if replaced and not (folder / replaced[1]).exists():
            path.rename(folder / replaced[1])
        else:
            shutil.rmtree(path)


def check_contract(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raises `RecipeError` naming every value on which the run that wrote `path` and this one differ."""
    different = [key for key in sorted({*saved, *now}) if saved.get(key) != now.get(key)]
    if different:
        lines = "\n".join(f"  {key}: {saved.get(key)!r} then, {now.get(key)!r} now" for key in different)
        raise RecipeError(
            f"resume: {path} was written by another run:\n{lines}",
            "Set these back, or start again in another output_dir.",
        )


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _split(tree: Any, tensors: dict[str, Tensor], seen: set[int], path: str = "") -> Any:
    """`tree` with its tensors moved to `tensors`, and dicts as pairs (JSON would turn their int keys into strings)."""
    if isinstance(tree, Tensor):
        tensor = tree.detach().cpu().contiguous()
        # safetensors takes no two names for one storage, such as the code book that 8-bit optimizer states share
        storage = tensor.untyped_storage().data_ptr()
        tensors[path] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
        return {"tensor": path}
    if isinstance(tree, dict):
        return {"pairs": [[key, _split(value, tensors, seen, f"{path}/{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [_split(value, tensors, seen, f"{path}/{i}") for i, value in enumerate(tree)]}
    return tree


def _join(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(skeleton, dict):
        return skeleton
    kind, content = next(iter(skeleton.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "pairs":
        return {key: _join(value, tensors) for key, value in content}
    values = [_join(value, tensors) for value in content]
    return tuple(values) if kind == "tuple" else values


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
