"""From a recipe file and overrides to a validated recipe whose every value is final and has a known origin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from pydantic import BaseModel

from tunekit.errors import RecipeError
from tunekit.recipe.compose import fill_places, read_recipe, recipe_of_text
from tunekit.recipe.derive import derive
from tunekit.recipe.explain import place_of, validate
from tunekit.recipe.losses import DEFAULT, facts_of, is_loss
from tunekit.recipe.override import override
from tunekit.recipe.parse import Document, KeyPath, dotted
from tunekit.recipe.schema import Recipe

STAGES = "stages"  # the key of a file that holds several recipes, which pipeline.py reads


@dataclass(frozen=True)
class Resolved:
    """A recipe with final values, and for each dotted path "default", "derived", "override" or "file:line"."""

    recipe: Recipe
    origins: dict[str, str]


def load(path: str | PathLike[str], overrides: Sequence[str] = (), stage: str | None = None) -> Resolved:
    """Reads a recipe file and applies overrides: `train.seed=1`, `data.train.0.path=x.jsonl`, `~data.eval`, in order.

    `stage` is the one that is to run, where a recipe does not say it; one that says another is refused.

    Raises `RecipeError` that names all that is wrong: file:line:column, key, value, what is accepted, and the line.
    """
    document = read_recipe(fspath(path))
    for text in overrides:
        override(document, text)
    fill_places(document)
    return _resolve(document, stage)


def load_text(text: str, source: str, stage: str | None = None) -> Resolved:
    """The recipe that `text` is; messages call it `source`. `stage` and what is raised are those of `load`."""
    return _resolve(recipe_of_text(text, source), stage)


def _resolve(document: Document, stage: str | None) -> Resolved:
    if STAGES in document.value:
        spot = place_of(document, (STAGES,)).of_key
        message = f"{spot}: {STAGES}: this file is a pipeline of several recipes"
        raise RecipeError(document.quote(spot, message), f"Run it with: tunekit run {document.places[()].source}")
    follows = _take_stage(document, stage) if stage else set()
    recipe, problems = validate(document)
    if recipe is None:
        raise RecipeError(document.report(problems))
    return with_origins(document, recipe, follows)


def with_origins(document: Document, recipe: Recipe, follows: Set[str] = frozenset()) -> Resolved:
    """The recipe that `document` is with its derived values; `follows` are keys that were filled in before."""
    final, derived = derive(recipe)
    origins = {dotted(leaf): _origin(document, leaf, given) for leaf, given in _leaves(recipe)}
    return Resolved(final, origins | dict.fromkeys(derived | follows, "derived"))


def _take_stage(document: Document, stage: str) -> set[str]:
    """Makes a recipe that does not say its stage one of `stage`, and returns the keys that were filled in so.

    Raises `RecipeError` where the recipe, or what its loss is for, is another stage.
    """
    given = document.value.get("stage")
    path: KeyPath = ("stage",) if given is not None else ("objective", "loss")
    said = given if given is not None else implied(document.value.get("objective"))
    if isinstance(said, str) and said in DEFAULT and said != stage:  # one that does not exist is named with the rest
        spot = place_of(document, path).of_value
        message = f"{spot}: {dotted(path)}: this recipe is for tunekit {said}, and this is tunekit {stage}"
        raise RecipeError(document.quote(spot, message), f"Run tunekit {said}, or change {dotted(path)}.")
    if given is not None:
        return set()
    document.value["stage"] = stage
    return {"stage"}


def implied(objective: Any) -> str | None:
    """The stage of the first loss that is known, in a section that is not validated yet."""
    losses = objective.get("loss") if isinstance(objective, dict) else None
    names = [name for name in losses if isinstance(name, str) and is_loss(name)] if isinstance(losses, list) else []
    return facts_of(names[0]).stage if names else None


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
