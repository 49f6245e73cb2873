"""From a recipe file and overrides to a validated recipe whose every value is final and has a known origin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath

from pydantic import BaseModel

from tunekit.errors import RecipeError
from tunekit.recipe.compose import fill_places, read_recipe, recipe_of_text
from tunekit.recipe.derive import derive
from tunekit.recipe.explain import place_of, validate
from tunekit.recipe.override import override
from tunekit.recipe.parse import Document, KeyPath, dotted
from tunekit.recipe.schema import Recipe


@dataclass(frozen=True)
class Resolved:
    """A recipe with final values, and for each dotted path "default", "derived", "override" or "file:line"."""

    recipe: Recipe
    origins: dict[str, str]


def load(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Resolved:
    """Reads a recipe file and applies overrides: `train.seed=1`, `data.train.0.path=x.jsonl`, `~data.eval`, in order.

    Raises `RecipeError` that names all that is wrong: file:line:column, key, value, what is accepted, and the line.
    """
    document = read_recipe(fspath(path))
    for text in overrides:
        override(document, text)
    fill_places(document)
    return _resolve(document)


def load_text(text: str, source: str) -> Resolved:
    """The recipe that `text` is; messages call it `source`. Raises `RecipeError` like `load`."""
    return _resolve(recipe_of_text(text, source))


def _resolve(document: Document) -> Resolved:
    recipe, problems = validate(document)
    if recipe is None:
        raise RecipeError(document.report(problems))
    final, derived = derive(recipe)
    origins = {dotted(leaf): _origin(document, leaf, given) for leaf, given in _leaves(recipe)}
    return Resolved(final, origins | dict.fromkeys(derived, "derived"))


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
        elif isinstance(value, dict):
            yield from (((*path, key), True) for key in value)
        else:
            yield path, name in model.model_fields_set
