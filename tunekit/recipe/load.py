"""From a recipe file and overrides to a validated recipe whose every value is final and has a known origin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from pydantic import BaseModel

from tunekit.errors import RecipeError
from tunekit.recipe.derive import derive
from tunekit.recipe.explain import place_of, validate
from tunekit.recipe.parse import NEEDED, Document, KeyPath, Place, dotted, parse, read_text, scalar
from tunekit.recipe.schema import SYNONYMS, Recipe, expand


@dataclass(frozen=True)
class Resolved:
    """A recipe with final values, and for each dotted path "default", "derived", "override" or "file:line"."""

    recipe: Recipe
    origins: dict[str, str]


def load(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Resolved:
    """Reads a recipe file and applies overrides such as `train.seed=1` or `data.train.0.path=x.jsonl`, in their order.

    Raises `RecipeError` that names all that is wrong, a line for each: file:line:column, key, value, what is accepted.
    """
    source = fspath(path)
    document = parse(read_text(source), source)
    if not isinstance(document.value, dict):
        place = document.places[()]
        found = "is empty" if document.value is None else "does not hold keys with values"
        raise RecipeError(f"{place.of_value}: {found}", NEEDED)
    _rename_synonyms(document)
    document.value = expand(document.value)
    for override in overrides:
        _override(document, override)
    recipe, problems = validate(document)
    if recipe is None:
        raise RecipeError("\n".join(map(str, problems)))
    final, derived = derive(recipe)
    origins = {dotted(leaf): _origin(document, leaf, given) for leaf, given in _leaves(recipe)}
    return Resolved(final, origins | dict.fromkeys(derived, "derived"))


def _rename_synonyms(document: Document) -> None:
    for theirs, ours in SYNONYMS.items():
        if ours not in document.places and theirs in document.places:
            document.places[ours] = document.places.pop(theirs)


def _origin(document: Document, leaf: KeyPath, given: bool) -> str:
    return place_of(document, leaf).origin if given else "default"


def _leaves(model: BaseModel, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, bool]]:
    """The path of every value of the recipe, and whether it was given."""
    for name in type(model).model_fields:
        value, path = getattr(model, name), (*prefix, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, path)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for index, item in enumerate(value):
                yield from _leaves(item, (*path, index))
        else:
            yield path, name in model.model_fields_set


def _override(document: Document, override: str) -> None:
    """Sets one value of the document. Missing sections are made; an item after the last one of a list is appended."""
    source = f"override `{override}`"
    if not override.isprintable() and not override.replace("\n", "").replace("\t", "").isprintable():
        raise RecipeError(f"override {override!r}: holds a character that is not printable text")
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"{source}: is not of the form key=value or section.key=value")
    path: KeyPath = tuple(int(key) if re.fullmatch(r"[0-9]{1,6}", key) else key for key in keys)
    path = next((ours for theirs, ours in SYNONYMS.items() if theirs == path), path)
    value, inside = _override_value(text.strip(), source)
    _assign(document.value, path, value, source)
    document.value = expand(document.value)
    document.places = {known: place for known, place in document.places.items() if known[: len(path)] != path}
    document.places.update({(*path, *rest): Place(source) for rest in inside})


def _override_value(text: str, source: str) -> tuple[Any, list[KeyPath]]:
    """A flow list, flow mapping or quoted text as YAML, anything else as one plain scalar (`a: b` is text)."""
    if not text.startswith(("[", "{", '"', "'")):
        return scalar(text), [()]
    document = parse(text, source)
    if document.problems:
        raise RecipeError(str(document.problems[0]))
    return document.value, list(document.places)


def _assign(root: Any, path: KeyPath, value: Any, source: str) -> None:
    *parents, last = path
    node = root
    for depth, (part, following) in enumerate(zip(parents, path[1:], strict=True)):
        made: Any = [] if isinstance(following, int) else {}
        node = _enter(node, path[:depth], part, made, source)
    if isinstance(node, list):
        _enter(node, path[:-1], last, value, source)
        node[last] = value  # type: ignore[index]
    elif isinstance(node, dict):
        node[str(last)] = value
    else:
        raise RecipeError(f"{source}: {dotted(path[:-1])} is not a section")


def _enter(node: Any, at: KeyPath, part: str | int, made: Any, source: str) -> Any:
    """The part of a section or list, made where it is missing or null."""
    if isinstance(node, dict):
        if node.get(str(part)) is None:
            node[str(part)] = made
        return node[str(part)]
    if not isinstance(node, list):
        raise RecipeError(f"{source}: {dotted(at)} is not a section")
    if not isinstance(part, int) or part > len(node):
        last = f"0 to {len(node)}, where {len(node)} adds one"
        raise RecipeError(f"{source}: {dotted(at)} is a list; items are named by a number from {last}")
    if part == len(node):
        node.append(made)
    return node[part]
