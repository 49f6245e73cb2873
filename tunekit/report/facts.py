"""A run folder as one object; what is missing or torn in it is left out, and said."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from tunekit.errors import StorageError
from tunekit.evals.gates import is_number
from tunekit.train.folder import MANIFEST, RESULT
from tunekit.train.report import read_metrics

METRICS, RECIPE = "metrics.jsonl", "recipe.yaml"
Key = tuple[Any, int]


@dataclass
class Facts:
    """`result` and `manifest` as written but without null, `recipe` as text, `metrics` row by row.

    `missing`: what could not be read, as sentences.
    """

    folder: Path
    result: dict[str, Any]
    manifest: dict[str, Any]
    recipe: str
    metrics: list[dict[str, Any]]
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def model(self) -> dict[str, Any]:
        """Name, revision and hash of what was trained, or measured."""
        return self.manifest.get("base_model") or self.result.get("model") or {}

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """Results of tasks by when they were measured: `before` and `after` training, or `measured`."""
        tasks: dict[str, Any] = self.result.get("tasks") or {}
        of_run: dict[str, Any] = {when: tasks[when] for when in ("before", "after") if tasks.get(when)}
        return of_run or ({"measured": tasks} if tasks and "after" not in tasks else {})

    @property
    def last_tasks(self) -> dict[str, Any]:
        """Results of tasks of the model as it is now."""
        return self.tasks.get("after") or self.tasks.get("measured") or {}

    @property
    def held_out(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Figures of held-out rows before training, and after it or, where a run did not end, as last measured."""
        result = self.result
        return result.get("before") or {}, result.get("after") or result.get("last_evaluation") or {}

    @property
    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints that are still in the folder."""
        steps = (path.name.removeprefix("step-") for path in self.folder.glob("checkpoints/step-*"))
        return sorted(int(step) for step in steps if step.isdecimal())

    def series(self, key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in self.metrics if is_number(row.get(key))]

    def items(self, task: Mapping[str, Any]) -> dict[Key, dict[str, Any]]:
        """A task's answers under their id and how often that came before; none where there is no file of them."""
        file = self.folder / str(task.get("items"))
        # The folder may come from somebody else, and must not show files of this machine.
        if not task.get("items") or not file.resolve().is_relative_to(self.folder.resolve()):
            return {}
        found: dict[Key, dict[str, Any]] = {}
        seen: dict[Any, int] = {}
        for item in self._lines(file):
            number = seen[item.get("id")] = seen.get(item.get("id"), -1) + 1
            found[item.get("id"), number] = item
        return found

    def _lines(self, file: Path) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(_text(file, self.missing).splitlines(), start=1):
            try:
                yield dict(json.loads(line))
            except (ValueError, TypeError):
                self.missing.append(f"{file.name}:{number} cannot be read")


def is_finite(value: Any) -> TypeGuard[float]:
    return is_number(value) and math.isfinite(value)


def read_facts(folder: Path) -> Facts:
    """Raises `StorageError` where there is no run at all."""
    missing: list[str] = []
    result, manifest = (_json(folder / name, missing) for name in (RESULT, MANIFEST))
    metrics = _metrics(folder / METRICS, missing)
    if not (result or manifest or metrics or missing):
        raise StorageError(f"{folder}: holds no run: no {RESULT}, no {MANIFEST}", "Give the output_dir of a run.")
    if not (folder / RESULT).exists():
        missing.append(f"There is no {RESULT}: the run has not ended, or was killed.")
    return Facts(folder, result, manifest, _text(folder / RECIPE, missing), metrics, missing)


def _metrics(file: Path, missing: list[str]) -> list[dict[str, Any]]:
    try:
        rows = read_metrics(file)
    except (OSError, UnicodeDecodeError) as error:
        missing.append(f"{file.name} cannot be read: {error}")
        return []
    return [row for row in rows if isinstance(row, dict) and is_finite(row.get("step"))]


def _text(file: Path, missing: list[str]) -> str:
    """Empty where there is no such file."""
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        missing.append(f"{file.name} cannot be read: {error}")
        return ""


def _json(file: Path, missing: list[str]) -> dict[str, Any]:
    text = _text(file, missing)
    try:
        content = json.loads(text) if file.is_file() else {}
    except ValueError as error:
        if text:
            missing.append(f"{file.name} cannot be read: {error}")
        return {}
    return _known(content) if isinstance(content, dict) else {}


def _known(value: Any) -> Any:
    """Without null, which says no more than a key that is not there."""
    if isinstance(value, dict):
        return {key: _known(each) for key, each in value.items() if each is not None}
    return [_known(each) for each in value if each is not None] if isinstance(value, list) else value
