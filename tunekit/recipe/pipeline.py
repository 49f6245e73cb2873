"""Several recipes in one file, its stages: each may name the output of an earlier one as `${name}`.

A stage is a recipe with a name. It stands on top of the recipe file that its `recipe` names, and that on top of the
`defaults` of the pipeline. Mistakes of all stages are told at once, each with its place in the file that it is in.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from os import PathLike, fspath
from typing import Any

from tunekit.errors import RecipeError
from tunekit.recipe.compose import fill_places, in_full, merge, read_recipe
from tunekit.recipe.explain import place_of, refusal, shown, validate
from tunekit.recipe.forms import EXTENDS
from tunekit.recipe.load import STAGES, Resolved, implied, with_origins
from tunekit.recipe.losses import DEFAULT
from tunekit.recipe.override import override
from tunekit.recipe.parse import Document, KeyPath, Place, Problem, parse
from tunekit.recipe.read import read_text
from tunekit.recipe.references import is_inside, nearest, refer
from tunekit.recipe.types import as_path

NAME, RECIPE, OUTPUT = "name", "recipe", "output_dir"
KEYS = (OUTPUT, "defaults", STAGES)
STAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
NEEDED = "A pipeline has the keys output_dir and stages; each stage is a recipe with a name."
IN_QUOTES = 'Inside [ ] and { } a reference is put in quotes: "${name}".'


@dataclass(frozen=True)
class Stage:
    """One recipe of a pipeline; `needs` are the earlier stages whose output it names."""

    name: str
    resolved: Resolved
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Pipeline:
    """The stages of a file in its order, and the folder for what concerns all of them."""

    path: str
    output_dir: str
    stages: tuple[Stage, ...]


def load_pipeline(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Pipeline:
    """Reads a pipeline and applies overrides: `stages.NAME.train.seed=1`, `~stages.NAME.data.eval`, `output_dir=x`.

    Raises `RecipeError` that names all that is wrong in any of the stages: file:line:column, key, value, what is
    accepted, and the line.
    """
    document = _read(fspath(path))
    for text in overrides:
        if not _is_of_stage(text):
            override(document, text)
    fill_places(document)
    _raise(document, list(_shape(document)))
    names = [stage[NAME] for stage in document.value[STAGES]]
    changes = [_change(text, names) for text in overrides if _is_of_stage(text)]
    output_dir = as_path(document.value[OUTPUT])
    folders, stages, parts, problems = dict[str, str](), list[Stage](), list[Document](), list[Problem]()
    for index, name in enumerate(names):
        part = _recipe_of(document, index, [(text, written) for stage, text, written in changes if stage == name])
        _place_output(part, document, os.path.join(output_dir, name))
        needs = refer(part, name, names, folders)
        folders[name] = str(part.value[OUTPUT])
        derived = _take_name(part, name)
        recipe, wrong = validate(part)
        problems += [problem for problem in wrong if problem not in problems]
        parts.append(part)
        if recipe is not None:
            stages.append(Stage(name, with_origins(part, recipe, derived), needs))
    whole = reduce(lambda lines, part: {**lines, **part.lines}, parts, document.lines)
    _raise(Document(None, {}, whole), problems or list(_same_folder(output_dir, folders, parts)))
    return Pipeline(fspath(path), output_dir, tuple(stages))


def _read(path: str) -> Document:
    text = read_text(path)
    try:
        document = parse(text, path)
    except RecipeError as error:
        if "${" in text and "got '{'" in error.message:
            raise RecipeError(error.message, IN_QUOTES) from None
        raise
    if not isinstance(document.value, dict):
        raise RecipeError(f"{path}: does not hold keys with values", NEEDED)
    if STAGES not in document.value:
        spot = document.places[()].of_value
        fix = "A single recipe is run by the command of its stage, such as tunekit sft."
        raise RecipeError(document.quote(spot, f"{spot}: {STAGES} is missing: this file is no pipeline"), fix)
    return document


def _raise(document: Document, problems: list[Problem]) -> None:
    if problems:
        raise RecipeError(document.report(problems))


def _shape(document: Document) -> Iterator[Problem]:
    """What is wrong with the pipeline apart from what its stages say."""
    value = document.value
    inside = ((STAGES, 2), ("defaults", 1))
    yield from (
        each for each in document.problems if not any(each.path[:1] == (k,) and len(each.path) > n for k, n in inside)
    )
    for key in value.keys() - set(KEYS):
        listed = f"; a pipeline has the keys {', '.join(KEYS)}"
        if not place_of(document, (key,)).line:
            listed += f"; what is of one stage begins with {STAGES}.NAME, what is of all with defaults"
        yield _problem(document, (key,), f"unknown key{nearest(key, KEYS)}{listed}", at_key=True)
    if OUTPUT not in value:
        yield _problem(document, (OUTPUT,), "is missing. Folder of the pipeline, with one in it for each stage.")
    elif wrong := refusal((OUTPUT,), value[OUTPUT]):
        yield _problem(document, (OUTPUT,), wrong)
    defaults = value.get("defaults", {})
    if not isinstance(defaults, dict):
        yield _problem(document, ("defaults",), f"{shown(defaults)}, must be a section (keys of recipes)")
    if not isinstance(value[STAGES], list) or not value[STAGES]:
        yield _problem(document, (STAGES,), f"{shown(value[STAGES])}, must be a list of recipes, each with a name")
        return
    for index, stage in enumerate(value[STAGES]):
        yield from _stage_shape(document, index, stage)


def _stage_shape(document: Document, index: int, stage: Any) -> Iterator[Problem]:
    at: KeyPath = (STAGES, index)
    if not isinstance(stage, dict):
        yield _problem(document, at, f"{shown(stage)}, must be a section (a name and the keys of a recipe)")
        return
    name = stage.get(NAME)
    before = [each.get(NAME) for each in document.value[STAGES][:index] if isinstance(each, dict)]
    if NAME not in stage:
        yield _problem(document, (*at, NAME), "is missing. By it later stages refer to this one, as ${name}.")
    elif not isinstance(name, str) or not STAGE_NAME.fullmatch(name):
        yield _problem(document, (*at, NAME), f"{shown(name)}, must be a letter, then letters, digits, - and _")
    elif name in before:
        yield _problem(document, (*at, NAME), f"{shown(name)} is the name of an earlier stage too; each has its own")
    if EXTENDS in stage:
        yield _problem(document, (*at, EXTENDS), f"a stage starts from a file by {RECIPE}: FILE", at_key=True)
    if RECIPE in stage and not (isinstance(stage[RECIPE], str) and stage[RECIPE]):
        yield _problem(document, (*at, RECIPE), f"{shown(stage[RECIPE])}, must be the path of a recipe")


def _problem(document: Document, path: KeyPath, message: str, *, at_key: bool = False) -> Problem:
    place = place_of(document, path)
    return Problem(path, place.of_key if at_key else place.of_value, message)


def _is_of_stage(text: str) -> bool:
    return text.strip().removeprefix("~").startswith(f"{STAGES}.")


def _change(text: str, names: list[str]) -> tuple[str, str, str]:
    """The stage that an override is about, what it is for the recipe of that stage, and as it was written."""
    dropped = "~" if text.strip().startswith("~") else ""
    name, dot, rest = text.strip().removeprefix("~").removeprefix(f"{STAGES}.").partition(".")
    if not dot or "=" in name:
        raise RecipeError(f"override {text!r}: is not of the form {STAGES}.NAME.key=value or ~{STAGES}.NAME.key")
    if name not in names:
        raise RecipeError(f"override `{text}`: no stage is called {name}{nearest(name, names)}", _listed(names))
    return name, f"{dropped}{rest}", text


def _listed(names: Sequence[str]) -> str:
    return f"The stages are {', '.join(names)}."


def _recipe_of(document: Document, index: int, changes: list[tuple[str, str]]) -> Document:
    """The recipe of a stage: defaults, under the file that it starts from, under its own keys, under the overrides."""
    own = _part(document, (STAGES, index))
    start = own.value.pop(RECIPE, None)
    del own.value[NAME]
    layers = [_part(document, ("defaults",))] if document.value.get("defaults") else []
    if start is not None:
        layers.append(_base(document, document.places[STAGES, index, RECIPE], start))
    own.places = {path: place for path, place in own.places.items() if path[:1] not in ((NAME,), (RECIPE,))}
    part = reduce(merge, [*map(in_full, layers), in_full(own)])
    for text, written in changes:
        override(part, text, written)
    fill_places(part)
    return part


def _part(document: Document, at: KeyPath) -> Document:
    """What is at `at` as a document of its own."""
    value, depth = document.value, len(at)
    for key in at:
        value = value[key]
    places = {path[depth:]: place for path, place in document.places.items() if path[:depth] == at}
    problems = [
        each._replace(path=each.path[depth:])
        for each in document.problems
        if each.path[:depth] == at and len(each.path) > depth
    ]
    return Document(copy.deepcopy(value), places, document.lines, problems)


def _base(document: Document, place: Place, name: str) -> Document:
    """The recipe file that a stage starts from, whose output_dir is that of runs of its own."""
    try:
        base = read_recipe(os.path.join(os.path.dirname(place.source), os.path.expanduser(name)))
    except RecipeError as error:
        spot = place.of_value
        raise RecipeError(document.quote(spot, f"{spot}: {RECIPE}: {error.message}"), error.fix) from None
    base.value.pop(OUTPUT, None)
    base.places.pop((OUTPUT,), None)
    return base


def _place_output(part: Document, document: Document, folder: str) -> None:
    """Gives a stage that does not name its folder the one in that of the pipeline."""
    if OUTPUT not in part.value:
        part.value[OUTPUT] = folder
        part.places[OUTPUT,] = document.places[OUTPUT,]


def _take_name(part: Document, name: str) -> set[str]:
    """Makes a recipe that does not say its stage the one that it is called after; the keys that were filled in."""
    if name not in DEFAULT or part.value.get("stage") is not None or implied(part.value.get("objective")):
        return set()
    part.value["stage"] = name
    return {"stage"}


def _same_folder(output_dir: str, folders: dict[str, str], parts: list[Document]) -> Iterator[Problem]:
    """Stages that would write into each other's folders, or in place of the pipeline."""
    seen: dict[str, str] = {}
    for (name, folder), part in zip(folders.items(), parts, strict=True):
        others = [other for other, theirs in seen.items() if is_inside(folder, theirs) or is_inside(theirs, folder)]
        if is_inside(output_dir, folder):
            others.append("the pipeline")
        for other in others:
            message = f"{shown(folder)}: {name} and {other} would write into the same folder, or one into the other's"
            yield _problem(part, (OUTPUT,), message)
        seen[name] = folder
