"""A resolved recipe as YAML that loads again (`as_yaml` with origins, `dump` without), and as JSON values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tunekit.recipe.excerpt import printable
from tunekit.recipe.load import Resolved
from tunekit.recipe.parse import scalar
from tunekit.recipe.schema import Recipe

MAX_COLUMN = 60
_PLAIN = re.compile(r"[A-Za-z0-9_./~][A-Za-z0-9_./~@+-]*")


def as_yaml(resolved: Resolved) -> str:
    """The whole recipe, the origin of each value in a comment beside it."""
    shown = list(lines(resolved.recipe.model_dump(mode="json")))
    column = min(max(len(text) for text, _ in shown), MAX_COLUMN)
    return "".join(
        f"{text.ljust(column)}  # {resolved.origins[path]}\n" if path else f"{text}\n" for text, path in shown
    )


def as_dict(resolved: Resolved) -> dict[str, Any]:
    """The recipe as plain JSON values, and the origin of each by dotted path."""
    return {"recipe": resolved.recipe.model_dump(mode="json"), "origins": dict(resolved.origins)}


def dump(recipe: Recipe) -> str:
    """The whole recipe; loaded again, it resolves to an equal one."""
    return "".join(f"{text}\n" for text, _ in lines(recipe.model_dump(mode="json")))


def lines(section: dict[str, Any], indent: int = 0, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each line, with the dotted path of the value on it ("" for a line that only opens a section)."""
    for key, value in section.items():
        start, path = f"{' ' * indent}{flow(key)}:", f"{prefix}{key}"
        if isinstance(value, dict):
            yield start, ""
            yield from lines(value, indent + 2, f"{path}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield start, ""
            for index, item in enumerate(value):
                (first, leaf), *rest = lines(item, indent + 4, f"{path}.{index}.")
                yield f"{' ' * (indent + 2)}- {first.lstrip()}", leaf
                yield from rest
        else:
            yield f"{start} {flow(value)}", path


def flow(value: Any) -> str:
    """A single value, or a list of them, as it stands behind a key."""
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    return value if _PLAIN.fullmatch(value) and scalar(value) == value else _quoted(value)


def _quoted(text: str) -> str:
    """Double-quoted YAML: JSON, but with characters that YAML refuses or folds escaped."""
    return printable(json.dumps(text, ensure_ascii=False))
