"""`output_dir`: what may be in it at start, and what every run leaves there, also one that failed."""

import errno
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from tunekit.errors import Interrupted, MemoryExceeded, RecipeError, StorageError, TunekitError
from tunekit.train.signals import Stopped

log = logging.getLogger("tunekit")

RESULT = "result.json"
MANIFEST = "manifest.json"
LIBRARIES = (
    "tunekit",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "bitsandbytes",
)
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG}
STATUS = {0: "done", 75: "preempted", 130: "interrupted"}


@contextmanager
def open_folder(output_dir: str, resuming: bool, *, is_main: bool = True) -> Iterator[Path]:
    """Makes `output_dir` and holds it against other runs while the block lasts; of several processes the first does.

    Raises `RecipeError` if another run is writing to it, or if it holds something that only `resume` may continue.
    """
    folder = Path(output_dir)
    if not is_main:
        yield folder
        return
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        check_folder(folder, resuming)
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RecipeError(f"output_dir: {output_dir}: another run is writing to it") from error
    except OSError as error:
        raise StorageError(f"output_dir: {output_dir}: {error.strerror}") from error
    with lock:
        yield folder


def check_folder(folder: Path, resuming: bool) -> None:
    """Raises `RecipeError` if `folder` holds what only `resume` may continue, `StorageError` if it cannot be one."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise StorageError(f"output_dir: {folder}: {place} is a file and no folder", "Choose another output_dir.")
    if not os.access(place, os.W_OK):
        raise StorageError(f"output_dir: {folder}: {place} cannot be written", "Choose another output_dir.")
    present = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if present and not resuming and not _failed_early(folder):
        raise RecipeError(
            f"output_dir: {folder} is not empty ({', '.join(present[:4])})",
            "Continue that run with resume=auto, choose another output_dir, or remove the folder.",
        )


def _failed_early(folder: Path) -> bool:
    """Whether `folder` is what a run left that ended before its first checkpoint: nothing in it is worth keeping."""
    ours = (folder / RESULT).is_file() or (folder / MANIFEST).is_file()
    return ours and not _is_done(folder) and not any(folder.glob("checkpoints/step-*"))


def _is_done(folder: Path) -> bool:
    """Whether there is a model, or the result of a run that came to its end, such as an evaluation."""
    if (folder / "model").exists():
        return True
    try:
        return bool(json.loads((folder / RESULT).read_text(encoding="utf-8"))["exit_code"] == 0)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def result_file(folder: Path, stage: str, *, is_main: bool = True) -> Iterator[dict[str, Any]]:
    """Yields the dict that becomes `result.json`, whatever happens in the block, with status, exit code and seconds.

    A recipe that is refused does not take the place of what a run before it achieved. Of several processes the first
    writes it.
    """
    started = time.time()
    result: dict[str, Any] = {"stage": stage, "status": "failed", "exit_code": 1, "events": []}
    warnings = _Warnings(result["events"])
    log.addHandler(warnings)
    try:
        yield result
        result["exit_code"] = 0
    except BaseException as error:
        known = _known(error)
        result["exit_code"] = known.exit_code if isinstance(known, TunekitError) else 1
        result["error"] = str(known) or type(known).__name__
        if known is error:
            raise
        raise known from error
    finally:
        log.removeHandler(warnings)
        result["status"] = STATUS.get(result["exit_code"], "failed")
        result["seconds"] = round(time.time() - started, 2)
        refused = result["exit_code"] == RecipeError.exit_code and any(folder.glob("checkpoints/step-*"))
        if is_main and not refused:
            write_json(folder / RESULT, result)


class _Warnings(logging.Handler):
    """Keeps what a run warns of, for `result.json`."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        super().__init__(logging.WARNING)
        self.events = events

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append({"step": None, "text": record.getMessage()})


def _known(error: BaseException) -> BaseException:
    """A signal, a full or read-only disk and exhausted memory, wherever they strike, as errors that a user can meet."""
    if isinstance(error, Stopped):
        return error.error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted before the end")
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return StorageError(f"{error.filename or 'output_dir'}: {error.strerror}")
    if out_of_memory(error):
        return MemoryExceeded(f"out of memory: {error}", "Lower the batch size of training or evaluation.")
    return error


def out_of_memory(error: BaseException) -> bool:
    """torch raises its own error on accelerators and a plain RuntimeError on processors."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def write_manifest(folder: Path, **facts: Any) -> None:
    """`manifest.json`: the facts given, library versions, and the commit of the directory the run was started in."""
    versions = {name: version(name) for name in LIBRARIES}
    machine = {"python": platform.python_version(), "platform": platform.platform()}
    write_json(folder / MANIFEST, {**facts, "versions": versions, **machine, "git": _git_state()})


def write_json(path: Path, content: dict[str, Any]) -> None:
    replace_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Replaces `path` in one rename, so that a reader never sees half a file; raises `StorageError`."""
    staging = path.with_name(f"{path.name}.tmp")
    try:
        staging.write_text(text, encoding="utf-8")
        staging.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        staging.unlink(missing_ok=True)


def _git_state() -> dict[str, Any] | None:
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    if commit.returncode != 0:
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(changed.stdout.strip())}
