"""Validation of a document against the schema, with everything that is wrong said at once and at its place."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tunekit.recipe.excerpt import printable
from tunekit.recipe.forms import EXTENDS, expand
from tunekit.recipe.hints import SECTIONS, is_key, keys_of, nearest_value, unknown_key
from tunekit.recipe.parse import Document, KeyPath, Place, Problem, dotted, leaves, scalar
from tunekit.recipe.rules import conflicts
from tunekit.recipe.schema import Recipe

ACCEPTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section (our keys, their columns)",
    "model_type": "a section (keys and values)",
    "string_too_short": "some text",
    "too_short": "a list with at least one item",
    "finite_number": "a finite number",
}
OWN = ("path", "checkpoint", "attention", "condition", "loss")  # errors of types.py, which say all that is to be said
PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)
PLACEHOLDER = "?"
TODO = re.compile(r"TODO(:\s*(.*))?", re.DOTALL)
MAX_ATTEMPTS = 4
MAX_HINTS = 100  # unknown keys for which a likely one is sought: more take seconds
MAX_SHOWN = 60


def shown(value: Any) -> str:
    """A value as it would stand in a recipe, shortened."""
    if isinstance(value, (dict, list)):
        kind = "section" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    text = printable(str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def place_of(document: Document, path: KeyPath) -> Place:
    """The place of the value at `path`, or of the innermost part of the recipe that is written out and holds it."""
    for length in range(len(path), 0, -1):
        if path[:length] in document.places:
            return document.places[path[:length]]
    return document.places[()]


def validate(document: Document) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, or None and all that is wrong with it."""
    raw = copy.deepcopy(document.value)
    problems = {problem.path: problem for problem in _left_to_do(document)}
    faulty = {problem.path for problem in document.problems}
    suspects = {dotted(path) for path in faulty | problems.keys()}
    recipe, details = _attempt(raw)
    for _ in range(MAX_ATTEMPTS):
        for path, errors in _by_path(details, raw).items():
            kind = errors[0]["type"]
            if kind != "missing" or suspects.isdisjoint(_required(path)):
                message, meant = _message(path, errors, brief=len(problems) >= MAX_HINTS)
                whole = path[:-1] if isinstance(path[-1], int) else path
                suspects.update((dotted(path), dotted(whole), meant))
                problems.setdefault(path, _problem(document, path, message, kind == "extra_forbidden"))
                _check_as(document, raw, path, meant)
            _mend(raw, path, kind == "missing")
        recipe, details = _attempt(raw)
    for conflict in conflicts(recipe) if recipe else ():
        # A rule about a key that is itself wrong would blame the user for our guess at its value.
        if suspects.isdisjoint(conflict.keys):
            path = tuple(int(part) if part.isdigit() else part for part in conflict.at.split("."))
            problems.setdefault(path, _problem(document, path, conflict.message, False))
    # What is wrong with the YAML of a value is said, not what follows from it.
    said = document.problems + [problem for path, problem in problems.items() if path not in faulty]
    return (None if said else recipe), said


def _left_to_do(document: Document) -> Iterator[Problem]:
    """Values that whoever wrote the recipe left to be filled in: `TODO`, or `TODO: what is to be filled in`."""
    for path, value in leaves(document.value):
        known = all(is_key(path[:length]) for length in range(1, len(path) + 1))
        if known and isinstance(value, str) and (match := TODO.fullmatch(value)):
            yield _problem(document, path, f"is still to be filled in: {match[2] or _field(path)[1]}", False)


def _required(path: KeyPath) -> set[str]:
    """The keys, dotted, one of which under a wrong name explains why `path` is missing."""
    model = SECTIONS.get(dotted(path))
    inner = {name for name, field in model.model_fields.items() if field.is_required()} if model else set()
    names = {dotted(path), *(f"{dotted(path)}.{name}" for name in inner)}
    return names if any(isinstance(part, int) for part in path) else names | {EXTENDS}  # a base has no part of a list


def _attempt(raw: Any) -> tuple[Recipe | None, list[ErrorDetails]]:
    try:
        return Recipe.model_validate(raw), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _check_as(document: Document, raw: Any, path: KeyPath, meant: str) -> None:
    """Has what stands in a section with a wrong name checked as that of the section meant, where there is none."""
    if len(path) > 1 or meant not in Recipe.model_fields or meant in raw or not isinstance(raw[path[0]], dict):
        return
    raw[meant] = raw[path[0]]
    for known, place in list(document.places.items()):
        if known[:1] == path:
            document.places.setdefault((meant, *known[1:]), place)


def _mend(raw: Any, path: KeyPath, missing: bool) -> None:
    """Takes a wrong value out, or puts a placeholder in, so that the next attempt finds what is wrong with the rest."""
    if path[0] == "data" and len(path) > 3:
        path = path[:4]  # a key of a source, whole
    *parents, key = cast("tuple[Any, ...]", path)
    if isinstance(key, int) and path[0] != "data":
        *parents, key = parents
    for part in parents:
        raw = raw[part]
    if isinstance(raw, list):
        raw[key] = {"path": PLACEHOLDER}
    elif missing:
        raw.setdefault(key, PLACEHOLDER)
    else:
        raw.pop(key, None)


def _by_path(details: list[ErrorDetails], raw: Any) -> dict[KeyPath, list[ErrorDetails]]:
    """The errors of each value; where no member of a union fits, only what is wrong deepest inside."""
    found: dict[KeyPath, list[ErrorDetails]] = {}
    # Unknown keys first: one of them may be the missing key under another name.
    for detail in sorted(details, key=lambda detail: detail["type"] != "extra_forbidden"):
        found.setdefault(_in_document(detail, raw), []).append(detail)
    outer = {path[:length] for path in found for length in range(len(path))}
    return {path: errors for path, errors in found.items() if path not in outer}


def _in_document(detail: ErrorDetails, raw: Any) -> KeyPath:
    """Where the error is, without the names that pydantic gives to the members of a union."""
    path: list[str | int] = []
    *_, last = detail["loc"]
    for part in detail["loc"]:
        if isinstance(part, str) != isinstance(raw, dict):
            continue
        if isinstance(raw, dict) and part not in raw and (detail["type"] != "missing" or part != last):
            continue
        path.append(part)
        if isinstance(raw, dict):
            raw = raw.get(part)
        else:
            raw = raw[part] if isinstance(raw, list) and isinstance(part, int) else None
    return tuple(path)


def _problem(document: Document, path: KeyPath, message: str, at_key: bool) -> Problem:
    place = place_of(document, path)
    return Problem(path, place.of_key if at_key else place.of_value, message)


def _message(path: KeyPath, errors: list[ErrorDetails], *, brief: bool = False) -> tuple[str, str]:
    """What to say of a value, and the dotted path of the key probably meant ("" if none)."""
    first = errors[0]
    if first["type"] == "extra_forbidden":
        return ("unknown key", "") if brief else unknown_key(path)
    default, description = _field(path)
    if first["type"] == "missing":
        return f"is missing. {description}", ""
    value = first["input"]
    errors = [error for error in errors if error["type"] in OWN] or errors
    expected = [word for error in errors for word in re.findall(r"'([^']*)'", error.get("ctx", {}).get("expected", ""))]
    hint = _meant(path, first) or nearest_value(value, expected, ".".join(_names(path)))
    accepted = " or ".join(dict.fromkeys(_accepted(error, hint) for error in errors))
    message = f"{'is empty' if value is None else shown(value)}, must be {accepted}{hint}"
    if value is None and default is not None:
        message += f"; remove the line for the default ({default})"
    elif value is None and dotted(path) in SECTIONS:
        message += "; give it a key below, or remove the line"
    return message, ""


def _meant(path: KeyPath, error: ErrorDetails) -> str:
    """How to write a value that is another kind of thing here."""
    value = error["input"]
    if path == ("data",) and isinstance(value, list):
        return "; write train: [...] below data"
    if path == ("objective",) and isinstance(value, list):
        return "; write loss: [...] below objective"
    if path in (("data", "train"), ("data", "eval")) and isinstance(value, dict):
        return "; write - before its first key, or [ ] around it"
    if error["type"] == "model_type" and isinstance(value, str) and len(words := value.split(maxsplit=1)) == 2:
        key = words[0]
        return f"; write {key}: {shown(scalar(words[1]))}" if key in keys_of(".".join(_names(path))) else ""
    percent = PERCENT.fullmatch(value) if isinstance(value, str) and error["type"] == "float_type" else None
    return f"; write {float(percent[1]) / 100:g}" if percent else ""


def _accepted(error: ErrorDetails, hint: str) -> str:
    if error["type"] == "too_short" and isinstance(error["input"], dict):
        return "a section with at least one key"
    accepted = ACCEPTED.get(error["type"]) or error["msg"].removeprefix("Input should be ").removeprefix("must be ")
    value = error["input"]
    if isinstance(value, str) and error["type"] in ("int_type", "float_type") and isinstance(scalar(value), int):
        return f"{accepted} (without quotes)"
    if error["type"] == "string_type" and isinstance(value, (bool, int, float)) and not hint:
        return f"{accepted} (put it in quotes)"
    return accepted


def _names(path: KeyPath) -> list[str]:
    """The keys on the way, without the numbers of list items."""
    return [part for part in path if isinstance(part, str)]


def _field(path: KeyPath) -> tuple[str | None, str]:
    """The default of the field at `path` as it is shown, and its description."""
    *parents, name = _names(path)
    model = SECTIONS.get(".".join(parents))
    field = model.model_fields.get(name) if model else None
    if field is None:
        return None, ""
    plain = field.default is None or isinstance(field.default, (str, int, float))
    return (shown(field.default) if plain and not field.is_required() else None), field.description or ""


def refusal(path: KeyPath, value: Any) -> str:
    """What is wrong with `value` at `path` on its own, whatever else the recipe says; "" if nothing."""
    raw: dict[str, Any] = expand({"model": PLACEHOLDER, "data": PLACEHOLDER, "output_dir": PLACEHOLDER})
    node: Any = raw
    for part in path[:-1]:
        node = node.setdefault(part, {})
    node[path[-1]] = value
    found = _by_path(_attempt(raw)[1], raw)
    return "; ".join(_message(at, errors)[0] for at, errors in found.items() if at[: len(path)] == path)
