"""Validation of a document against the schema, with everything that is wrong said at once and at its place."""

from __future__ import annotations

import copy
import json
import re
import sys
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tunekit.recipe.hints import SECTIONS, nearest_value, unknown_key
from tunekit.recipe.parse import Document, KeyPath, Place, Problem, dotted
from tunekit.recipe.rules import conflicts
from tunekit.recipe.schema import Recipe

ACCEPTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "model_type": "a section (keys and values)",
    "model_attributes_type": "a section (keys and values)",
    "string_too_short": "some text",
    "too_short": "a list with at least one item",
    "finite_number": "a finite number",
}
UNION_MEMBERS = re.compile(r"(bool|int|float|str|list|tuple|literal|constrained-\w+)(\[.*\])?")
PLACEHOLDER = "?"
MAX_ATTEMPTS = 4
MAX_ERRORS = 100
MAX_SHOWN = 60


def shown(value: Any) -> str:
    """A value as it would stand in a recipe, shortened."""
    if isinstance(value, (dict, list)):
        return "a section" if isinstance(value, dict) else "a list" if value else "an empty list"
    text = str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def place_of(document: Document, path: KeyPath) -> Place:
    """The place of the value at `path`, or of the innermost part of the recipe that is written out and holds it."""
    for length in range(len(path), 0, -1):
        if path[:length] in document.places:
            return document.places[path[:length]]
    # A section that only an override made has no place of its own.
    inner = (place for known, place in document.places.items() if path and known[: len(path)] == path)
    return next(inner, document.places[()])


def validate(document: Document) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, or None and all that is wrong with it, in the order of the file."""
    problems = {problem.path: problem for problem in document.problems}
    suspects = {dotted(path) for path in problems}
    raw = copy.deepcopy(document.value)
    recipe, details = _attempt(raw)
    for _ in range(MAX_ATTEMPTS):
        for path, errors in _by_path(details).items():
            kind = errors[0]["type"]
            if kind != "missing" or suspects.isdisjoint(_required(path)):
                message, meant = _message(path, errors)
                whole = path[:-1] if isinstance(path[-1], int) else path
                suspects.update((dotted(path), dotted(whole), meant))
                problems.setdefault(path, _problem(document, path, message, kind == "extra_forbidden"))
            _mend(raw, path, kind == "missing")
        recipe, details = _attempt(raw)
    for conflict in conflicts(recipe) if recipe else ():
        # A rule about a key that is itself wrong would blame the user for our guess at its value.
        if suspects.isdisjoint(conflict.keys):
            path = tuple(int(part) if part.isdigit() else part for part in conflict.at.split("."))
            problems.setdefault(path, _problem(document, path, conflict.message, False))
    ordered = sorted(problems.values(), key=lambda problem: problem.order)
    return (None if ordered else recipe), ordered


def _required(path: KeyPath) -> set[str]:
    """The keys, dotted, one of which under a wrong name explains why `path` is missing."""
    model = SECTIONS.get(dotted(path))
    inner = {name for name, field in model.model_fields.items() if field.is_required()} if model else set()
    return {dotted(path)} | {f"{dotted(path)}.{name}" for name in inner}


def _attempt(raw: Any) -> tuple[Recipe | None, list[ErrorDetails]]:
    try:
        return Recipe.model_validate(raw), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _mend(raw: Any, path: KeyPath, missing: bool) -> None:
    """Takes a wrong value out, or puts a placeholder in, so that the next attempt finds what is wrong with the rest."""
    *parents, key = cast("tuple[Any, ...]", path)
    if isinstance(key, int) and path[0] != "data":
        *parents, key = parents
    for part in parents:
        raw = raw[part]
    if isinstance(raw, list) or missing:
        raw[key] = {"path": PLACEHOLDER} if isinstance(raw, list) else PLACEHOLDER
    else:
        raw.pop(key, None)


def _by_path(details: list[ErrorDetails]) -> dict[KeyPath, list[ErrorDetails]]:
    """The errors of each value; where no member of a union fits, only what is wrong deepest inside."""
    found: dict[KeyPath, list[ErrorDetails]] = {}
    # Unknown keys first: one of them may be the missing key under another name.
    for detail in sorted(details[:MAX_ERRORS], key=lambda detail: detail["type"] != "extra_forbidden"):
        path = detail["loc"]
        if detail["type"] != "extra_forbidden":
            path = tuple(part for part in path if isinstance(part, int) or not UNION_MEMBERS.fullmatch(part))
        found.setdefault(path, []).append(detail)
    inner = {path: any(other[: len(path)] == path != other for other in found) for path in found}
    return {path: errors for path, errors in found.items() if not inner[path]}


def _problem(document: Document, path: KeyPath, message: str, at_key: bool) -> Problem:
    place = place_of(document, path)
    order = (place.line, place.column) if place.line else (sys.maxsize, 0)
    return Problem(path, place.of_key if at_key else place.of_value, order, message)


def _message(path: KeyPath, errors: list[ErrorDetails]) -> tuple[str, str]:
    first = errors[0]
    if first["type"] == "extra_forbidden":
        return unknown_key(path)
    default, description = _field(path)
    if first["type"] == "missing":
        return f"is missing. {description}", ""
    value = first["input"]
    accepted = " or ".join(dict.fromkeys(_accepted(error) for error in errors))
    expected = re.findall(r"'([^']*)'", first.get("ctx", {}).get("expected", ""))
    message = f"{'is empty' if value is None else shown(value)}, must be {accepted}{nearest_value(value, expected)}"
    if value is None and default is not None:
        message += f"; remove the line for the default ({default})"
    return message, ""


def _accepted(error: ErrorDetails) -> str:
    accepted = ACCEPTED.get(error["type"]) or error["msg"].removeprefix("Input should be ").removeprefix("must be ")
    if isinstance(error["input"], str) and error["type"] in ("int_type", "float_type") and error["input"].isdigit():
        return f"{accepted} (without quotes)"
    if error["type"] == "string_type" and isinstance(error["input"], (bool, int, float)):
        return f"{accepted} (put it in quotes)"
    return accepted


def _field(path: KeyPath) -> tuple[str | None, str]:
    """The default of the field at `path` as it is shown, and its description."""
    *parents, name = (part for part in path if isinstance(part, str))
    model = SECTIONS.get(".".join(parents))
    field = model.model_fields.get(name) if model else None
    if field is None:
        return None, ""
    plain = field.default is None or isinstance(field.default, (str, int, float))
    return (shown(field.default) if plain and not field.is_required() else None), field.description or ""
