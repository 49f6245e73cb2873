"""`tunekit gate`: the figures of a run against what they must reach."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunekit.errors import GateFailed, RecipeError, StorageError
from tunekit.evals.gates import Gate, Verdict, check, parse, parse_line
from tunekit.evals.junit import junit
from tunekit.train.folder import RESULT, replace_text

log = logging.getLogger("tunekit")


def run(
    path: str, gates: Sequence[str], *, baseline: str | None = None, junit_file: str | None = None
) -> list[Verdict]:
    """What becomes of `gates` (lines), or of those of the run's own recipe where none are given.

    Raises `RecipeError` where there is none, `GateFailed` where there is none because the run failed before them, and
    `StorageError` where the result is missing or damaged.
    """
    result = read_result(path)
    found = [parse_line(text) for text in gates] or _own(path, result)
    if not found and result.get("exit_code", 0) != 0:
        raise GateFailed(f"{path}: the run did not end well: exit code {result['exit_code']}")
    if not found:
        raise RecipeError(
            f"{path}: no gate to check", "Give --gate 'eval_loss < 1.9', or a gate section in the recipe."
        )
    other = None
    if baseline is not None and _file(baseline).exists():
        other = read_result(baseline)
    elif baseline is not None:
        log.warning("--baseline: %s: no such result", _file(baseline))
    verdicts = check(found, result, other)
    if junit_file is not None:
        replace_text(Path(junit_file), junit(verdicts, _file(path).parent.name or "result"))
    return verdicts


def render(verdicts: Sequence[Verdict]) -> str:
    return "\n".join(
        f"{'pass' if each.passed else 'FAIL'}  {each.name} {each.condition}: {each.reason}" for each in verdicts
    )


def read_result(path: str) -> dict[str, Any]:
    """`result.json`, or that of a run folder."""
    file = _file(path)
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StorageError(f"{file}: no such result", "Give the folder of a run, or its result.json.") from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{file}: cannot be read: {error}") from error
    if not isinstance(result, dict):
        raise StorageError(f"{file}: is no result of tunekit")
    return result


def _file(path: str) -> Path:
    return Path(path) / RESULT if Path(path).is_dir() else Path(path)


def _own(path: str, result: dict[str, Any]) -> list[Gate]:
    try:
        return [parse(each["name"], each["condition"]) for each in result.get("gates", ())]
    except (KeyError, TypeError) as error:
        raise StorageError(f"{_file(path)}: gates: is no list of gates", "Give them with --gate.") from error
