"""Overrides behind a recipe: `train.seed=1` sets a value, `~data.eval` drops one. They are applied in their order."""

from __future__ import annotations

from typing import Any, cast

from tunekit.errors import RecipeError
from tunekit.recipe.excerpt import printable
from tunekit.recipe.forms import EXTENDS, expand, our_name
from tunekit.recipe.hints import is_key, unknown_key
from tunekit.recipe.parse import Document, KeyPath, Place, dotted, parse, scalar

MAX_SHOWN = 100


def override(document: Document, text: str, written: str = "") -> None:
    """Changes the document after one override. Raises `RecipeError` that names it as it was `written`."""
    written = written or text
    source = f"override `{printable(written if len(written) <= MAX_SHOWN else written[:MAX_SHOWN] + '...')}`"
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise RecipeError(f"{source}: is not UTF-8 text")
    name, equals, value = text.partition("=")
    dropped = name.strip().startswith("~")
    keys = tuple(name.strip().removeprefix("~").split("."))
    if not all(keys) or not name.isprintable() or bool(equals) == dropped:
        raise RecipeError(f"override {written!r}: is not of the form key=value, section.key=value or ~section.key")
    if keys[0] == EXTENDS:
        raise RecipeError(f"{source}: {EXTENDS} is for recipe files; put it in one, or override the values themselves")
    keys = our_name(keys)
    if dropped:
        _drop(document, keys, source)
    else:
        _set(document, keys, value.strip(), source)


def _set(document: Document, keys: tuple[str, ...], text: str, source: str) -> None:
    """Sets one value. Missing sections are made; an item after the last one of a list is appended."""
    value, inside = _value(text, source)
    path, made = _assign(document.value, keys, value, source)
    document.value = expand(document.value)
    document.places = {known: place for known, place in document.places.items() if known[: len(path)] != path}
    document.places.update({known: Place(source) for known in (*made, *((*path, *rest) for rest in inside))})


def _value(text: str, source: str) -> tuple[Any, list[KeyPath]]:
    """A flow list, flow mapping or quoted text as YAML, anything else as one plain scalar (`a: b` is text).

    Also the path of each value inside.
    """
    if not text.startswith(("[", "{", '"', "'")):
        return scalar(text), [()]
    document = parse(text, source, quoted=False)
    if document.problems:
        raise RecipeError(str(document.problems[0]))
    return document.value, list(document.places)


def _assign(root: Any, keys: tuple[str, ...], value: Any, source: str) -> tuple[KeyPath, list[KeyPath]]:
    """Sets the value that `keys` lead to. Returns its path, and those of the sections that were made for it."""
    node, path, made = root, cast("KeyPath", ()), list[KeyPath]()
    for key, following in zip(keys, (*keys[1:], ""), strict=True):
        part = _part(node, key, path, source)
        if isinstance(node, list) and part == len(node):
            node.append(None)
        if not following:
            node[part] = value
        elif (node[part] if isinstance(node, list) else node.get(part)) is None:
            node[part] = [] if following.isdecimal() else {}
            made.append((*path, part))
        node, path = node[part], (*path, part)
    return path, made


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


def _drop(document: Document, keys: tuple[str, ...], source: str) -> None:
    """Takes out one value, so that its default holds; the items after a dropped one move up."""
    parent, node, path = None, document.value, cast("KeyPath", ())
    for key in keys:
        part = int(key) if isinstance(node, list) and key.isdecimal() and len(key) <= 6 else key
        inside = range(len(node)) if isinstance(node, list) else node if isinstance(node, dict) else ()
        if part not in inside:
            raise RecipeError(f"{source}: {_nothing_there(keys)}")
        parent, node, path = node, node[part], (*path, part)
    assert parent is not None
    del parent[path[-1]]
    document.places = {known: place for known, place in document.places.items() if known[: len(path)] != path}
    if isinstance(parent, list):
        document.places = {_moved(known, path): place for known, place in document.places.items()}
    if isinstance(parent, dict) or not parent:
        # To be named if something that must be there is missing now.
        document.places[path if isinstance(parent, dict) else path[:-1]] = Place(source)


def _moved(known: KeyPath, dropped: KeyPath) -> KeyPath:
    """The path of a value after the item of a list at `dropped` is gone."""
    *parents, index = dropped
    depth = len(parents)
    if known[:depth] != tuple(parents) or len(known) == depth or cast("int", known[depth]) < cast("int", index):
        return known
    return (*parents, cast("int", known[depth]) - 1, *known[depth + 1 :])


def _nothing_there(keys: tuple[str, ...]) -> str:
    path = tuple(int(key) if key.isdecimal() else key for key in keys)
    for length in range(1, len(path) + 1):
        if not is_key(path[:length]):
            return f"{dotted(path[:length])}: {unknown_key(path[:length])[0]}"
    return f"{dotted(path)} is not set, so there is nothing to drop"
