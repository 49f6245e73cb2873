"""What was probably meant by a key or value that does not exist: another section's, another tool's, or a slip."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher, get_close_matches
from typing import Any, get_args

from pydantic import BaseModel

from tunekit.recipe.foreign import FOREIGN, IN_SECTION, VALUES, Foreign
from tunekit.recipe.forms import EXTENDS, SYNONYMS
from tunekit.recipe.forms import SECTIONS as OTHER_NAMES
from tunekit.recipe.parse import KeyPath, dotted
from tunekit.recipe.schema import Recipe

LEAST_LIKENESS = 0.6


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield prefix, model
    for name, field in model.model_fields.items():
        for inner in _models(field.annotation):
            yield from _sections(inner, f"{prefix}.{name}" if prefix else name)


SECTIONS = dict(_sections(Recipe))


def _likeness(key: str, name: str) -> float:
    return SequenceMatcher(None, key.lower(), name.lower()).ratio()


def keys_of(section: str) -> list[str]:
    """The keys that the section may have; "" is the recipe itself."""
    model = SECTIONS.get(section)
    return [*(model.model_fields if model else ()), *([EXTENDS, *OTHER_NAMES] if not section else [])]


def is_key(path: KeyPath) -> bool:
    """Whether the last part of `path` may stand where it does."""
    *parents, key = path
    section = ".".join(part for part in parents if isinstance(part, str))
    # What is no section is a mapping whose keys are the user's own.
    return isinstance(key, int) or section not in SECTIONS or key in keys_of(section) or (section, key) in SYNONYMS


def owners_of(name: str) -> list[str]:
    """The dotted paths of all keys of this name."""
    return [f"{section}.{name}" if section else name for section in SECTIONS if name in keys_of(section)]


def unknown_key(path: KeyPath) -> tuple[str, str]:
    """What to say about a key that does not exist, and the dotted path of the key probably meant ("" if none)."""
    *parents, key = path
    section = ".".join(part for part in parents if isinstance(part, str))
    name, prefix = str(key), f"{dotted(tuple(parents))}." if parents else ""
    if synonym := SYNONYMS.get((section, name)):
        return f"is another name of {synonym[1]}, which is given too; remove one of the two", dotted(synonym)
    *outer, inner = f"{section}.{name}".strip(".").split(".")
    if "." in name and ".".join(outer) in SECTIONS:
        nested = get_close_matches(inner.lower(), keys_of(".".join(outer)), 1, LEAST_LIKENESS)
        if not nested or _foreign(".".join(outer), inner):
            return unknown_key((*outer, inner))
        return f"unknown key; in a file, keys nest: write {nested[0]} below {'.'.join(outer)}", ".".join(outer + nested)
    if known := _foreign(section, name):
        if not known.ours:
            return f"unknown key; {name} is a key of {known.tool}; {known.why}", ""
        call = "call" if " and " in known.tool or known.tool == "other tools" else "calls"
        return f"unknown key; what {known.tool} {call} {name} is {known.ours} here", known.ours.replace("[]", "")
    own = keys_of(section)
    if owners := owners_of(name):
        near = get_close_matches(name.lower(), own, 1, LEAST_LIKENESS + 0.2)
        or_here = f"; or did you mean {prefix}{near[0]}?" if near else ""
        return f"unknown key here; it belongs at {' or '.join(map(_items, owners))}{or_here}", owners[0]
    if close := get_close_matches(name.lower(), own, 2, LEAST_LIKENESS):
        alike = [each for each in close if _likeness(each, name) == _likeness(close[0], name)]
        return f"unknown key; did you mean {' or '.join(prefix + each for each in alike)}?", prefix + close[0]
    likeness, nearest = max((_likeness(name, leaf), owner) for leaf in _leaf_names() for owner in owners_of(leaf))
    if likeness >= LEAST_LIKENESS + 0.1:
        return f"unknown key; did you mean {_items(nearest)}?", nearest
    return f"unknown key; {section or 'a recipe'} has the keys {', '.join(own)}", ""


def _foreign(section: str, name: str) -> Foreign | None:
    return IN_SECTION.get((section, name.lower())) or FOREIGN.get(name.lower())


def _leaf_names() -> set[str]:
    return {name for section in SECTIONS for name in keys_of(section)}


def _items(path: str) -> str:
    """`data.train.path` as `data.train[].path`: a key of each item of a list."""
    return re.sub(r"^(data\.(?:train|eval))\.", r"\1[].", path)


def nearest_value(value: Any, accepted: list[str], key: str = "") -> str:
    """`; did you mean x?` for a word that others use for one of those accepted at `key`, or one close to it."""
    word = str(value).lower()
    if known := VALUES.get(key, {}).get(word):
        return f"; {known}" if " " in known else f"; did you mean {known}?"
    close = get_close_matches(word, accepted, 1, LEAST_LIKENESS) if isinstance(value, str) else []
    return f"; did you mean {close[0]}?" if close else ""
