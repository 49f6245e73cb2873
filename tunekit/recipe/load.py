"""From a recipe file and overrides to a validated recipe whose every value is final and has a known origin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, cast

from pydantic import BaseModel

from tunekit.errors import RecipeError
from tunekit.recipe.derive import derive
from tunekit.recipe.explain import place_of, validate
from tunekit.recipe.parse import NEEDED, Document, KeyPath, Place, dotted, parse, read_text, scalar
from tunekit.recipe.schema import SYNONYMS, Recipe, expand

MAX_SHOWN = 100


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
    source = f"override `{override if len(override) <= MAX_SHOWN else override[:MAX_SHOWN] + '...'}`"
    name, equals, text = override.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys) or not name.isprintable():
        raise RecipeError(f"override {override!r}: is not of the form key=value or section.key=value")
    keys = next((ours for theirs, ours in SYNONYMS.items() if theirs == keys), keys)
    value, inside = _override_value(text.strip(), source)
    path = _assign(document.value, keys, value, source)
    document.value = expand(document.value)
    document.places = {known: place for known, place in document.places.items() if known[: len(path)] != path}
    document.places.update({(*path, *rest): Place(source) for rest in inside})


def _override_value(text: str, source: str) -> tuple[Any, list[KeyPath]]:
    """A flow list, flow mapping or quoted text as YAML, anything else as one plain scalar (`a: b` is text).

    Also the path of each value inside.
    """
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise RecipeError(f"{source!a}: is not UTF-8 text")
    if not text.startswith(("[", "{", '"', "'")):
        return scalar(text), [()]
    document = parse(text, source)
    if document.problems:
        raise RecipeError(str(document.problems[0]))
    return document.value, list(document.places)


def _assign(root: Any, keys: tuple[str, ...], value: Any, source: str) -> KeyPath:
    """Sets the value that `keys` lead to and returns its path."""
    node, path = root, cast("KeyPath", ())
    for key, following in zip(keys, (*keys[1:], ""), strict=True):
        part = _part(node, key, path, source)
        if isinstance(node, list) and part == len(node):
            node.append(None)
        if not following:
            node[part] = value
        elif (node[part] if isinstance(node, list) else node.get(part)) is None:
            node[part] = [] if following.isdecimal() else {}
        node, path = node[part], (*path, part)
    return path


def _part(node: Any, key: str, path: KeyPath, source: str) -> Any:
    """The key, as an index where `node` is a list."""
    if isinstance(node, dict):
        return key
    if not isinstance(node, list):
        raise RecipeError(f"{source}: {dotted(path)} is a single value, without keys of its own")
    if not key.isdecimal() or len(key) > 6 or int(key) > len(node):
        raise RecipeError(
            f"{source}: {dotted(path)} is a list of {len(node)}; name an item from 0, or {len(node)} to add one"
        )
    return int(key)
