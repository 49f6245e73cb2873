"""Checkpoints that are whole or not there: staged, fsynced, hashed, renamed into place, verified before they are used.

`checkpoints/step-N/` holds `tensors.safetensors` (every tensor of the state), `state.json` (the rest of it) and
`manifest.json` (size and sha256 of each file, the contract a resumed run must keep, and its own sha256). Tensors that
are divided over processes lie in `shard-*.safetensors` (see `divided`). No pickle is written or read.
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
from tunekit.train.divided import Part, is_part, write_parts
from tunekit.train.engine import Engine

log = logging.getLogger("tunekit")

MANIFEST = "manifest.json"
STAGING = ".tmp-"


@contextmanager
def staged(destination: Path, token: str | None = None) -> Iterator[Path]:
    """A folder to write into that becomes `destination` in one rename, its files fsynced, if the block succeeds.

    Raises `StorageError` (disk full, no permission); `destination` is then as it was before. A kill between the two
    renames that replace a destination leaves it under another name, from which `sweep` brings it back.
    """
    token = token or uuid.uuid4().hex[:8]
    staging = _staging(destination, token)
    old = destination.with_name(f"{STAGING}{destination.name}-old-{token}")
    try:
        staging.mkdir(parents=True, exist_ok=True)
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


def save(folder: Path, step: int, state: Any, contract: dict[str, Any], engine: Engine | None = None) -> Path:
    """Writes `state` (nested dicts, lists, tensors, numbers, strings) as `folder/step-N` and returns that path.

    Of several processes, which all come here, the first writes what each of them has, and each its part of what is
    divided. Raises `StorageError` in all of them if it fails in one.
    """
    engine, destination = engine or Engine(), folder / f"step-{step}"
    token, problem = engine.ranks.from_main(lambda: _begin(destination))
    tensors: dict[str, Tensor] = {}
    divided: dict[str, Tensor] = {}
    skeleton = _split(state, tensors, divided, set())
    try:
        if engine.is_main and not problem:
            with staged(destination, token) as staging:
                if divided:
                    write_parts(staging, divided)
                _write(staging, step, tensors, skeleton, contract)
        elif divided and not problem:
            write_parts(_staging(destination, token), divided)
    except StorageError as error:
        problem = str(error)
    # What fails in writing a part fails in all processes; the rest is the first one's, however long it takes.
    if problem := engine.ranks.from_main(lambda: problem):
        raise StorageError(problem)
    return destination


def _begin(destination: Path) -> tuple[str, str]:
    """The token of a staging folder that is there, or why it cannot be."""
    token = uuid.uuid4().hex[:8]
    try:
        _staging(destination, token).mkdir(parents=True)
    except OSError as error:
        return token, f"{destination}: cannot be written: {error}"
    return token, ""


def _staging(destination: Path, token: str) -> Path:
    return destination.with_name(f"{STAGING}{destination.name}-new-{token}")


def _write(staging: Path, step: int, tensors: dict[str, Tensor], skeleton: Any, contract: dict[str, Any]) -> None:
    save_file(tensors, staging / "tensors.safetensors")
    (staging / "state.json").write_text(json.dumps(skeleton))
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in staging.iterdir()}
    manifest = {"step": step, "contract": contract, "files": files}
    (staging / MANIFEST).write_text(json.dumps({**manifest, "sha256": _seal(manifest)}, indent=1))


def load(path: Path, *, verified: bool = False) -> Any:
    """The state that `save` wrote to `path`; raises `StorageError` naming the file that is damaged.

    What is divided over processes is left as a `Part`. `verified`: another process looks at the hashes.
    """
    if not verified:
        verify(path)
    return _join(json.loads((path / "state.json").read_text()), load_file(path / "tensors.safetensors"), path)


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


def _split(tree: Any, tensors: dict[str, Tensor], divided: dict[str, Tensor], seen: set[int], path: str = "") -> Any:
    """`tree` with its tensors moved to `tensors`, and dicts as pairs (JSON would turn their int keys into strings)."""
    if isinstance(tree, Tensor) and is_part(tree):
        divided[path] = tree.detach()
        return {"part": path}
    if isinstance(tree, Tensor):
        tensor = tree.detach().cpu().contiguous()
        # safetensors takes no two names for one storage, such as the code book that 8-bit optimizer states share
        storage = tensor.untyped_storage().data_ptr()
        tensors[path] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
        return {"tensor": path}
    if isinstance(tree, dict):
        pairs = [[key, _split(value, tensors, divided, seen, f"{path}/{key}")] for key, value in tree.items()]
        return {"pairs": pairs}
    if isinstance(tree, list | tuple):
        values = [_split(value, tensors, divided, seen, f"{path}/{i}") for i, value in enumerate(tree)]
        return {type(tree).__name__: values}
    return tree


def _join(skeleton: Any, tensors: dict[str, Tensor], folder: Path) -> Any:
    if not isinstance(skeleton, dict):
        return skeleton
    kind, content = next(iter(skeleton.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "part":
        return Part(folder, content)
    if kind == "pairs":
        return {key: _join(value, tensors, folder) for key, value in content}
    values = [_join(value, tensors, folder) for value in content]
    return tuple(values) if kind == "tuple" else values


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
