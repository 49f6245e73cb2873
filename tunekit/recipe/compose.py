"""A recipe file with the files that it extends, as one document in which every value keeps its own file and line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from tunekit.errors import RecipeError
from tunekit.recipe.explain import place_of
from tunekit.recipe.forms import EXTENDS, SECTIONS, SYNONYMS, expand, our_name
from tunekit.recipe.parse import NEEDED, Document, KeyPath, Place, leaves, parse
from tunekit.recipe.read import read_text
from tunekit.recipe.types import NOT_EXPANDED, VARIABLE

MAX_LEVELS = 8
MAX_FILES = 16


class _Base(NamedTuple):
    """A file that another one extends; `place` is where that is said."""

    path: str
    place: Place


def read_recipe(path: str) -> Document:
    """The file at `path` merged over its bases: sections by key, anything else replaced. A later base wins.

    Null drops what a base says, so that the default holds.

    Raises `RecipeError` for a file that is missing or no recipe, and for bases that go round in a circle.
    """
    return _read(read_text(path), path, (), [])


def recipe_of_text(text: str, source: str) -> Document:
    """`text` as if it stood in a file called `source`."""
    return _read(text, source, (), [])


def fill_places(document: Document) -> None:
    """Gives each value that only the expansion of a short form made the place of that short form."""
    for path, _ in leaves(document.value):
        if path not in document.places:
            document.places[path] = place_of(document, path)


def _read(text: str, path: str, chain: tuple[str, ...], seen: list[str]) -> Document:
    """`chain`: the files from the recipe down to this one; `seen`: all that were read so far."""
    document = in_full(parse(text, path))
    chain = (*chain, path)
    seen.append(path)
    merged: Document | None = None
    for base in _take_bases(document):
        read = _read(_base_text(document, base, chain, seen), base.path, chain, seen)
        merged = read if merged is None else merge(merged, read)
    return document if merged is None else merge(merged, document)


def in_full(document: Document) -> Document:
    """The document with its short forms expanded. Raises `RecipeError` where it does not hold keys with values."""
    if not isinstance(document.value, dict):
        spot = document.places[()].of_value
        found = "is empty" if document.value is None else "does not hold keys with values"
        raise RecipeError(document.quote(spot, f"{spot}: {found}"), NEEDED)
    for theirs in SYNONYMS.keys() & document.places.keys():
        if our_name(theirs) not in document.places:
            document.places[our_name(theirs)] = document.places.pop(theirs)
    for name, ours in SECTIONS.items():
        if (ours,) not in document.places:
            named = {path: place for path, place in document.places.items() if path[:1] == (name,)}
            document.places = {path: place for path, place in document.places.items() if path not in named}
            document.places |= {(ours, *path[1:]): place for path, place in named.items()}
    document.value = expand(document.value)
    fill_places(document)
    return document


def _take_bases(document: Document) -> Iterator[_Base]:
    """Takes `extends` out of the document."""
    places = {path: place for path, place in document.places.items() if path[:1] == (EXTENDS,)}
    if not places:
        return
    names = document.value.pop(EXTENDS)
    document.places = {path: place for path, place in document.places.items() if path not in places}
    listed = names if isinstance(names, list) and names else [names]
    for index, name in enumerate(listed):
        place = places.get((EXTENDS, index), places[EXTENDS,])
        if not isinstance(name, str) or not name:
            raise _error(document, place, "must be the path of a recipe, or a list of paths")
        if VARIABLE.search(name):
            raise _error(document, place, f'"{name}": {NOT_EXPANDED}')
        folder = os.path.dirname(place.source)
        yield _Base(os.path.join(folder, os.path.expanduser(name)), place)


def _base_text(document: Document, base: _Base, chain: tuple[str, ...], seen: list[str]) -> str:
    try:
        text = read_text(base.path)
    except RecipeError as error:
        raise _error(document, base.place, error.message, error.fix) from None
    if os.path.realpath(base.path) in map(os.path.realpath, chain):
        raise _error(document, base.place, f"goes round in a circle: {' -> '.join((*chain, base.path))}")
    if len(chain) > MAX_LEVELS:
        raise _error(document, base.place, f"is more than {MAX_LEVELS} levels of bases: {' -> '.join(chain)}")
    if len(seen) >= MAX_FILES:
        raise _error(document, base.place, f"is more than {MAX_FILES} files in all")
    return text


def _error(document: Document, place: Place, message: str, fix: str = "") -> RecipeError:
    spot = place.of_value
    return RecipeError(document.quote(spot, f"{spot}: {EXTENDS}: {message}"), fix)


def merge(base: Document, over: Document) -> Document:
    """`over` on top of `base`, both in full: sections by key, anything else replaced."""
    replaced = set(_replaced(base.value, over.value))
    kept = {
        path: place
        for path, place in base.places.items()
        if not any(path[:length] in replaced for length in range(1, len(path) + 1))
    }
    return Document(
        _merged(base.value, over.value),
        {**kept, **over.places},
        {**over.lines, **base.lines},
        [*over.problems, *base.problems],
    )


def _merged(base: Any, over: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    merged = {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
    return {key: value for key, value in merged.items() if value is not None or base.get(key) is None}


def _replaced(base: dict[str, Any], over: dict[str, Any], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    """The paths of the base whose values are those of `over` now."""
    for key in base.keys() & over.keys():
        path = (*prefix, key)
        if isinstance(base[key], dict) and isinstance(over[key], dict):
            yield from _replaced(base[key], over[key], path)
        else:
            yield path
