"""What a stage of a pipeline says about the output of an earlier one: `${name}` in a path."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import AfterValidator

from tunekit.recipe.explain import place_of, shown
from tunekit.recipe.hints import SECTIONS
from tunekit.recipe.parse import Document, KeyPath, Problem, leaves
from tunekit.recipe.types import NOT_EXPANDED, as_path

REFERENCE = re.compile(r"\$\{([^{}]*)\}")
BARE = re.compile(r"\$(\w[\w-]*)")


def refer(part: Document, name: str, names: list[str], folders: dict[str, str]) -> tuple[str, ...]:
    """Puts the folders of earlier stages in place of what refers to them; the names of the stages that are used.

    A reference that leads nowhere becomes a problem of the document. A folder that is written out is used as well.
    """
    needs: list[str] = []
    for path, value in list(leaves(part.value)):
        if not isinstance(value, str) or not _takes_path(path):
            continue
        wrong = [_unknown(each, name, names, list(folders)) for each in REFERENCE.findall(value) if each not in folders]
        if (bare := BARE.search(value)) and bare[1] in names:
            wrong.append(f"write ${{{bare[1]}}} for what that stage leaves")
        spot = place_of(part, path).of_value
        part.problems += [Problem(path, spot, f"{shown(value)}: {reason}") for reason in wrong]
        written = REFERENCE.sub(lambda match: folders.get(match[1], match[1]), value)
        _put(part.value, path, written)
        needs += [each for each, folder in folders.items() if is_inside(written, folder)]
    return tuple(dict.fromkeys(needs))


def is_inside(path: str, folder: str) -> bool:
    """Whether `path` is the folder or lies in it."""
    inner, outer = (Path(os.path.abspath(os.path.expanduser(each))) for each in (path, folder))
    return inner.is_relative_to(outer)


def _unknown(wanted: str, name: str, names: list[str], earlier: list[str]) -> str:
    if wanted == name:
        return "this is the stage itself; a stage can use what earlier ones leave"
    if wanted in names:
        return f"{wanted} comes later in the file, and stages run in its order; move it before {name}"
    if wanted.isupper():
        return f"no stage is called {wanted}, and {NOT_EXPANDED}"
    listed = f"earlier stages: {', '.join(earlier)}" if earlier else "this is the first stage"
    return f"no stage is called {wanted}{nearest(wanted, earlier) or '; ' + listed}"


def _takes_path(path: KeyPath) -> bool:
    """Whether the value there is a path, or a list of paths."""
    *parents, key = [part for part in path if isinstance(part, str)] or [""]
    model = SECTIONS.get(".".join(parents))
    field = model.model_fields.get(key) if model else None
    return field is not None and (_is_path(field.metadata) or _holds_path(field.annotation))


def _holds_path(annotation: Any) -> bool:
    return _is_path(getattr(annotation, "__metadata__", ())) or any(map(_holds_path, get_args(annotation)))


def _is_path(metadata: Sequence[Any]) -> bool:
    return any(isinstance(each, AfterValidator) and each.func is as_path for each in metadata)


def _put(node: Any, path: KeyPath, value: str) -> None:
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value


def nearest(word: str, names: Sequence[str]) -> str:
    close = get_close_matches(word, names, 1)
    return f"; did you mean {close[0]}?" if close else ""
