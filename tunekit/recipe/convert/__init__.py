"""A config of axolotl, LLaMA-Factory or TRL as a recipe; what has no counterpart is listed, never dropped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tunekit.errors import RecipeError
from tunekit.recipe.convert import axolotl, keys, llama_factory, trl
from tunekit.recipe.convert.draft import Draft
from tunekit.recipe.convert.finish import finish
from tunekit.recipe.convert.objective import read_stage
from tunekit.recipe.convert.write import as_recipe, remarks
from tunekit.recipe.foreign import AXOLOTL, FOREIGN, LLAMA_FACTORY, TRL
from tunekit.recipe.hints import nearest_value
from tunekit.recipe.load import load_text
from tunekit.recipe.parse import Document, parse
from tunekit.recipe.read import read_text

OPTIONS = {"axolotl": AXOLOTL, "llamafactory": LLAMA_FACTORY, "trl": TRL}
DATA = {AXOLOTL: axolotl.read_data, LLAMA_FACTORY: llama_factory.read_data, TRL: trl.read_data}


class Converted(NamedTuple):
    """The text of the recipe, and what a reader should know of how it came about."""

    recipe: str
    report: str


def convert(path: str, option: str | None = None, name: str = "the recipe") -> Converted:
    """The recipe that the config at `path` amounts to, which messages call `name`.

    option: axolotl, llamafactory, trl, or None to tell by the keys

    Raises `RecipeError` for a file that is not YAML, of no known tool, or of a stage that there is not.
    """
    if option is not None and option not in OPTIONS:
        near = nearest_value(option, list(OPTIONS))
        raise RecipeError(f"--from {option}: no such tool{near}", f"Accepted: {', '.join(OPTIONS)}.")
    document = parse(read_text(path), path, shared="write the value out")
    if document.problems:
        raise RecipeError(document.report(document.problems), "Correct the file, then convert it.")
    if not isinstance(document.value, dict):
        raise RecipeError(f"{path}: does not hold keys with values")
    tool, why = (OPTIONS[option], "as --from says") if option else _tool(document, path)
    draft = Draft(tool)
    read_stage(draft, document)
    DATA[tool](draft, document.value, Path(path).parent)
    for key, value in document.value.items():
        keys.convert_key(draft, key, value)
    finish(draft, document.value)
    recipe = as_recipe(draft, path)
    lines = [f"{path}: {tool}, {why}", *remarks(draft)]
    try:
        load_text(recipe, name)
    except RecipeError as error:
        lines += ["It does not load yet:", str(error)]
    return Converted(recipe, "\n".join(lines))


def _tool(document: Document, path: str) -> tuple[str, str]:
    """The tool whose own keys the file has, and those keys."""
    signs = [(FOREIGN[key].tool, key) for key in document.value if key in FOREIGN and FOREIGN[key].tool in DATA]
    counts = Counter(tool for tool, _ in signs).most_common()
    if not counts or (len(counts) > 1 and counts[0][1] == counts[1][1]):
        found = ", ".join(f"{count} of {tool}" for tool, count in counts) or "none"
        message = f"{path}: cannot tell which tool it is for; keys that only one of them has: {found}"
        raise RecipeError(message, f"Say it: --from {' or '.join(OPTIONS)}.")
    tool = counts[0][0]
    return tool, "by its keys " + ", ".join(sorted(key for owner, key in signs if owner == tool))
