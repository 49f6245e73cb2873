"""In what two recipes or two runs differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tunekit.errors import RecipeError
from tunekit.recipe.load import load
from tunekit.recipe.parse import dotted, leaves
from tunekit.recipe.show import flow

RECIPE, MANIFEST = "recipe.yaml", "manifest.json"
ABSENT = "(none)"
MAX_SHOWN = 48


class _Side(NamedTuple):
    """By dotted key each value and where it comes from; of a run also those of its manifest, if it has one."""

    values: dict[str, Any]
    origins: dict[str, str]
    manifest: bool


def compare(left: str, right: str) -> dict[str, Any]:
    """The values that are not equal, as JSON. A side that lacks a value has null as its origin.

    Raises `RecipeError` for a side that is no recipe and no folder of a run.
    """
    one, other = _side(left), _side(right)
    keys = list(dict.fromkeys([*one.values, *other.values]))
    if not (one.manifest and other.manifest):
        keys = [key for key in keys if not key.startswith(f"{MANIFEST}:")]
    differences = [
        {
            "key": key,
            "left": one.values.get(key),
            "right": other.values.get(key),
            "left_origin": one.origins.get(key),
            "right_origin": other.origins.get(key),
        }
        for key in keys
        if _differs(key, one, other)
    ]
    return {"left": left, "right": right, "compared": len(keys), "differences": differences}


def _differs(key: str, one: _Side, other: _Side) -> bool:
    """A default is no difference where the other side has no such key: only one of them has this source of rows."""
    if key in one.values and key in other.values:
        return bool(one.values[key] != other.values[key])
    return (one.origins.get(key) or other.origins.get(key)) != "default"


def as_text(comparison: dict[str, Any]) -> str:
    """A table with a line for each difference."""
    count, differences = comparison["compared"], comparison["differences"]
    if not differences:
        return f"equal: all {count} values of {comparison['left']} and {comparison['right']}"
    rows = [("", comparison["left"], comparison["right"])]
    rows += [(item["key"], _cell(item, "left"), _cell(item, "right")) for item in differences]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    table = [f"{key.ljust(widths[0])}  {left.ljust(widths[1])}  {right}" for key, left, right in rows]
    return "\n".join([*table, f"{len(differences)} of {count} values differ"])


def _cell(item: dict[str, Any], side: str) -> str:
    if item[f"{side}_origin"] is None:
        return ABSENT
    text = flow(item[side])
    text = text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
    # The key of a manifest says already where its value is from.
    return text if item["key"].startswith(f"{MANIFEST}:") else f"{text} ({item[f'{side}_origin']})"


def _side(path: str) -> _Side:
    folder = Path(path)
    if not folder.is_dir():
        return _recipe(path)
    if not (folder / RECIPE).is_file():
        raise RecipeError(f"{path}: holds no {RECIPE}, so it is no folder of a run", "Name a recipe, or an output_dir.")
    side = _recipe(str(folder / RECIPE))
    file = folder / MANIFEST
    if not file.is_file():
        return side
    facts = {f"{MANIFEST}:{key}": value for key, value in _values(_json(file)).items()}
    origins = dict.fromkeys(facts, str(file))
    return _Side({**side.values, **facts}, {**side.origins, **origins}, True)


def _recipe(path: str) -> _Side:
    resolved = load(path)
    return _Side(_values(resolved.recipe.model_dump(mode="json")), resolved.origins, False)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file}: cannot be read as JSON: {error}") from error


def _values(tree: Any) -> dict[str, Any]:
    """Each value by its dotted key; a list of plain values is one value."""
    return {dotted(path): value for path, value in leaves(tree, whole_lists=True)}
