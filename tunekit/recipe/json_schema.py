"""JSON Schema of a recipe file, for editors and for other programs: what the models accept, and the short forms.

Rules between keys (`rules.py`) are beyond it, but for those that concern which keys must be there.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from tunekit.recipe.forms import EXTENDS, SECTIONS, SHORT_FORMS, SYNONYMS
from tunekit.recipe.schema import Recipe
from tunekit.recipe.types import PATH_SCHEMA

DIALECT = "https://json-schema.org/draft/2020-12/schema"
BASES = {
    "description": "Recipe files that this one is merged over, relative to it; a later one wins over an earlier one.",
    "anyOf": [PATH_SCHEMA, {"type": "array", "items": PATH_SCHEMA, "minItems": 1}],
}


class _Generator(GenerateJsonSchema):
    def function_wrap_schema(self, schema: core_schema.WrapValidatorFunctionSchema) -> JsonSchemaValue:
        """A derived value, which may be null in a file."""
        return self.get_flattened_anyof([self.generate_inner(schema["schema"]), {"type": "null"}])


def json_schema() -> dict[str, Any]:
    """The schema of a recipe file, by draft 2020-12."""
    schema = _without_titles(Recipe.model_json_schema(schema_generator=_Generator))
    sections: dict[str, Any] = schema["$defs"]
    top = schema["properties"]
    _take_sources_as_text(sections["Data"]["properties"])
    _take_rewards_as_text(top)
    for (section, theirs), (_, ours) in SYNONYMS.items():
        keys = sections[section.title()]
        keys["properties"][theirs] = keys["properties"][ours] | {"description": f"The same as {ours}."}
        keys.setdefault("not", {"anyOf": []})["anyOf"].append({"required": [theirs, ours]})
    required = {section: sections[section.title()].pop("required", []) for section in ("model", "data")}
    for section, key in SHORT_FORMS.items():
        long = sections[section.title()]["properties"][key]
        # Only one word is short for a section: of data.train the path, of objective.loss one loss.
        short = {k: v for k, v in long.items() if k not in ("default", "description")}
        if "anyOf" in long:
            words = [part for part in long["anyOf"] if "enum" in part or "pattern" in part]
            short = {"anyOf": words} if words else PATH_SCHEMA
        about = {"description": top[section].pop("description")}
        top[section] = {**about, "anyOf": [short, {"$ref": f"#/$defs/{section.title()}"}]}
    top[EXTENDS] = BASES
    # What a recipe must have may come from the files that it extends.
    whole = {"required": schema.pop("required"), "properties": {k: {"required": v} for k, v in required.items()}}
    head = {"$schema": DIALECT, "title": "tunekit recipe", "description": "A recipe of tunekit."}
    return {**head, **schema, "if": {"not": {"required": [EXTENDS]}}, "then": whole}


def json_schema_text() -> str:
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _take_sources_as_text(data: dict[str, Any]) -> None:
    """`data.train` and `data.eval` may also be a path or hold paths."""
    for name in ("train", "eval"):
        listed = next(part for part in data[name].get("anyOf", [data[name]]) if part.get("type") == "array")
        items = {"type": "array", "items": {"anyOf": [PATH_SCHEMA, listed["items"]]}, "minItems": 1}
        others = [part for part in data[name].get("anyOf", []) if part is not listed]
        about = {key: value for key, value in data[name].items() if key in ("description", "default")}
        data[name] = {**about, "anyOf": [PATH_SCHEMA, items, *others]}


def _take_rewards_as_text(top: dict[str, Any]) -> None:
    """One reward, or its name or path, is short for a list; the section has another name too."""
    one = {"anyOf": [PATH_SCHEMA, {"$ref": "#/$defs/Reward"}]}
    listed = {"type": "array", "items": one, "minItems": 1}
    about = {key: value for key, value in top["rewards"].items() if key in ("description", "default")}
    for name in ("rewards", *(theirs for theirs, ours in SECTIONS.items() if ours == "rewards")):
        same = about if name == "rewards" else {"description": "The same as rewards."}
        top[name] = {**same, "anyOf": [*one["anyOf"], listed, {"type": "null"}]}


def _without_titles(node: Any) -> Any:
    """The schema without the titles that only repeat the keys; a default of a section is that of its keys."""
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: value if key == "default" else _without_titles(value)
        for key, value in node.items()
        if not (key == "title" and isinstance(value, str)) and not (key == "default" and isinstance(value, dict))
    }
