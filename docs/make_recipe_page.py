"""Writes docs/recipe.md from the schema: `python docs/make_recipe_page.py`. A test fails if the page is not current."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tunekit.recipe.data import Source
from tunekit.recipe.losses import LOSSES, keys_of
from tunekit.recipe.schema import Recipe

HEAD = """# Recipe keys

Made from the schema by `python docs/make_recipe_page.py`. `tunekit show RECIPE` prints what a recipe resolves to, each
value with its origin: default, file:line, override or derived.

- Short forms: `model: NAME`, `adapter: lora`, `data: PATH` (or `data.train`, `data.eval`: a path or a list of paths),
  `objective: LOSS`, `report_to: NAME`.
- `stage` need not be said: it is that of the command, `tunekit sft`, `reward`, `dpo` or `kto`; a recipe that says
  another one, or whose loss is for another one, is refused. The last table below says which keys each loss takes.
- `extends: base.yaml`, or a list of files, beside the recipe: sections are merged by key, anything else is replaced; a
  later base wins over an earlier one, the recipe over all. `null` resets a value of a base.
- Paths: a leading `~` is expanded, environment variables are not and are refused; a pattern that begins with `*` stands
  in quotes.
- Behind the recipe: `train.seed=1` sets a value, `~data.eval` drops one; `--set train.seed=1` is the same as an option.
- YAML is version 1.2 without tags, anchors, aliases and merge keys: `1e-4` is a number, `no` is text. A value `TODO` is
  still to be filled in, and an error.
- `tunekit schema --output recipe.schema.json` writes a JSON Schema; with
  `# yaml-language-server: $schema=recipe.schema.json` as the first line of a recipe, an editor completes and checks it.
- `tunekit init` writes a recipe to start from, `tunekit convert FILE` turns a config of axolotl, LLaMA-Factory or TRL
  into one, and `tunekit diff A B` shows in what two recipes or runs differ.
"""


def page() -> str:
    top = {name: field for name, field in Recipe.model_fields.items() if not _section(field.annotation)}
    lines = [HEAD, *_table("Top level", top)]
    for name, field in Recipe.model_fields.items():
        if section := _section(field.annotation):
            lines += _table(f"`{name}`: {field.description}", section.model_fields)
    lines += _table("`data.train[]`, `data.eval[]`: one source of rows.", Source.model_fields)
    return "\n".join(lines + _losses())


def _section(annotation: Any) -> type[BaseModel] | None:
    parts = [annotation, *getattr(annotation, "__args__", ())]
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _table(title: str, fields: dict[str, Any]) -> list[str]:
    rows = [f"| `{name}` | {_default(field)} | {field.description} |" for name, field in fields.items()]
    return [f"## {title}\n", "| key | default | |", "|---|---|---|", *rows, ""]


def _losses() -> list[str]:
    lines = ["## `objective.loss`: the losses, and the keys of each with their defaults\n", "| loss | stage | keys |"]
    lines.append("|---|---|---|")
    for name, facts in LOSSES.items():
        keys = [f"`{key}: {_number(value)}`" for key, value in keys_of((name,)).items() if key != "loss_weights"]
        lines.append(f"| `{name}` | {facts.stage} | {', '.join(keys)} |")
    return [*lines, ""]


def _number(value: float | None) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool | str) else f"{value:g}"


def _default(field: Any) -> str:
    return "required" if field.is_required() else f"`{json.dumps(field.default)}`"


if __name__ == "__main__":
    Path(__file__).with_name("recipe.md").write_text(page())
