"""A run folder as one object; what is missing or torn in it is left out, and said."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunekit.errors import StorageError
from tunekit.train.folder import MANIFEST, RESULT
from tunekit.train.report import read_metrics

MAX_ITEMS = 5  # of a task, shown before and after


@dataclass
class Facts:
    """`result` and `manifest` as written, `recipe` as text, `metrics` row by row, `missing` what could not be read."""

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
    def tasks(self) -> dict[str, dict[str, Any]]:
        """Results of tasks by when they were measured: `before` and `after` training, or `measured`."""
        tasks: dict[str, Any] = self.result.get("tasks") or {}
        of_run: dict[str, Any] = {when: tasks[when] for when in ("before", "after") if when in tasks}
        return of_run or ({"measured": tasks} if tasks else {})

    def series(self, key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in self.metrics if isinstance(row.get(key), int | float)]

    def items(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        """The lines of a task's answers; none where there is no file of them."""
        file = self.folder / str(task.get("items", ""))
        if not task.get("items") or not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def read_facts(folder: Path) -> Facts:
    """Raises `StorageError` where there is no run at all."""
    missing: list[str] = []
    result, manifest = (_json(folder / name, missing) for name in (RESULT, MANIFEST))
    metrics = read_metrics(folder / "metrics.jsonl")
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    if not (result or manifest or metrics):
        raise StorageError(f"{folder}: holds no run: no {RESULT}, no {MANIFEST}", "Give the output_dir of a run.")
    return Facts(folder, result, manifest, text, metrics, missing)


def _json(file: Path, missing: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if file.exists():
            missing.append(f"{file.name} cannot be read: {error}")
        return {}
    return content if isinstance(content, dict) else {}
