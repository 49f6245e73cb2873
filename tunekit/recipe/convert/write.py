"""The text of a converted recipe, and of what did not go into it."""

from __future__ import annotations

import json
from typing import Any

from tunekit.recipe.convert.draft import Draft, Note
from tunekit.recipe.excerpt import printable
from tunekit.recipe.forms import SHORT_FORMS
from tunekit.recipe.schema import Recipe
from tunekit.recipe.show import flow, lines

MAX_VALUE = 80


def as_recipe(draft: Draft, path: str) -> str:
    """The recipe in YAML in its short forms, with what went nowhere in comments at the end."""
    head = f"# Converted from {printable(path)} ({draft.tool}) by tunekit convert."
    body = [f"{text}  # {draft.remarks[key]}" if key in draft.remarks else text for text, key in lines(_nested(draft))]
    return "\n".join([head, *body, "", *(f"# {line}" for line in remarks(draft))]).rstrip() + "\n"


def remarks(draft: Draft) -> list[str]:
    """What has no counterpart, what was not needed, and what is otherwise than in the other tool."""
    said: list[str] = []
    if draft.missing:
        said.append("Without counterpart:")
        said += [f"  {_line(note.key, note.value)}  # {printable(note.why)}" for note in draft.missing]
    if draft.differences:
        said += [f"Different from {draft.tool}:", *(f"  {printable(line)}" for line in draft.differences)]
    if draft.needless:
        said += ["Not needed:", *_by_reason(draft.needless)]
    return said


def _by_reason(notes: list[Note]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for note in notes:
        reasons.setdefault(note.why, []).append(_line(note.key, note.value))
    return [f"  {', '.join(found)}  # {printable(why)}" for why, found in reasons.items()]


def _line(key: str, value: Any) -> str:
    if value is None:
        return f"{printable(key)}:"
    text = flow(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{printable(key)}: {printable(text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 3] + '...')}"


def _nested(draft: Draft) -> dict[str, Any]:
    """The values in the sections and the order of a recipe."""
    values: dict[str, Any] = {**draft.values, "data.train": _short(draft.train)}
    if draft.eval:
        values["data.eval"] = _short(draft.eval)
    recipe: dict[str, Any] = {}
    for name, field in Recipe.model_fields.items():
        if name in values:
            recipe[name] = values[name]
        keys = getattr(field.annotation, "model_fields", {})
        section = {key: values[f"{name}.{key}"] for key in keys if f"{name}.{key}" in values}
        if section:
            only = len(section) == 1 and isinstance(section.get(SHORT_FORMS.get(name, "")), str)
            recipe[name] = section[SHORT_FORMS[name]] if only else section
    return recipe


def _short(sources: list[dict[str, Any]]) -> Any:
    """Sources that are only paths, as these."""
    if any(source.keys() != {"path"} for source in sources):
        return sources
    paths = [source["path"] for source in sources]
    return paths[0] if len(paths) == 1 else paths
