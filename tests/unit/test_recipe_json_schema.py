"""The JSON Schema and the loader accept the same, as far as a JSON Schema can say it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from corpus.recipes.malformed import CASES
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from tunekit.errors import RecipeError
from tunekit.recipe.forms import EXTENDS, SYNONYMS
from tunekit.recipe.forms import SECTIONS as OTHER_NAMES
from tunekit.recipe.hints import SECTIONS
from tunekit.recipe.json_schema import json_schema, json_schema_text
from tunekit.recipe.load import load
from tunekit.recipe.parse import parse
from tunekit.recipe.schema import Recipe
from tunekit.recipe.show import as_dict

ROOT = Path(__file__).parents[2]
SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
GOOD: dict[str, Any] = {"model": "m", "data": "d", "output_dir": "o"}
# A number such as 1.0 is an integer to JSON Schema, and to the loader none: that cannot be said there.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 7, 0.5, 0.0001, 1.25, -0.5, 2**32, 2**32 - 1),
    *("", "x", "none", "lora", "auto", "bfloat16", "cosine", "random", "error", "keep", "assistant", "text", "wandb"),
    *("sft", "dpo", "ipo", "kto", "my/loss.py:f", "loss.py", "continue", ["ipo"], ["ipo", "hinge"], ["ipo", "x"]),
    *("pissa", "0-3", "0-3,7", "a-b", "3", "never", [], [""], ["x"], ["x", "y"], ["wandb"], [1], [0, 3], [-1], [None]),
    *(
        {},
        {"path": "x"},
        {"a": "b"},
        {"a": 1},
        {"a": ""},
        [{"path": "x"}],
        [{"path": ""}],
        [{"path": "x", "zzz": 1}],
        [{}],
    ),
]
KEYS = [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]


def recipe_with(section: str, key: str, value: Any) -> dict[str, Any]:
    """A recipe that is good but for, perhaps, one key."""
    if not section:
        return {**GOOD, key: value}
    if section in ("data.train", "data.eval"):
        return {**GOOD, "data": {"train": "x", section.removeprefix("data."): [{"path": "x", key: value}]}}
    required = {"model": {"name_or_path": "m"}, "data": {"train": "d"}}.get(section, {})
    return {**GOOD, section: {**required, key: value}}


def accepted(recipe: dict[str, Any]) -> bool:
    try:
        Recipe.model_validate(recipe)
    except ValidationError:
        return False
    return True


def test_it_is_a_schema_of_the_draft_that_it_names() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json_schema_text()) == SCHEMA


@pytest.mark.parametrize(("section", "key"), KEYS, ids=lambda part: part or "recipe")
def test_every_value_of_every_key_is_accepted_by_both_or_by_neither(section: str, key: str) -> None:
    for value in VALUES:
        recipe = recipe_with(section, key, value)
        assert VALIDATOR.is_valid(recipe) == accepted(recipe), f"{section}.{key}: {value!r}"


RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if path.stem != "rlhf"]  # which is a pipeline


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_as_written_and_as_resolved(path: Path) -> None:
    VALIDATOR.validate(parse(path.read_text(), str(path)).value)
    VALIDATOR.validate(as_dict(load(path))["recipe"])


# Of these families each case is wrong in a way that a schema can say.
BROKEN = [
    name
    for name in CASES
    if name.startswith(("value: ", "choice: ", "unknown: ", "elsewhere: ", "foreign: ", "none: "))
]
# A number that is whole is an integer to JSON Schema; a range from high to low and infinity are beyond it, and so are
# who has an account, the end of a text as Python's patterns have it, and words in any case.
BEYOND = ("1.0", "1e3", "3-1", ".nan", ".inf", "1e999", "TODO", "{path: a, columns: {q: a, q: b}}")
BEYOND += ("~nobody", "auto\\n", "Flash")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_recipes_are_refused_by_the_schema_too(name: str) -> None:
    text = CASES[name].text
    assert isinstance(text, str)
    if not any(word in text for word in BEYOND):
        assert not VALIDATOR.is_valid(parse(text, "r.yaml").value)


def test_what_must_be_there_may_come_from_a_base() -> None:
    for recipe in ({"extends": "b.yaml"}, {"extends": ["a.yaml", "b.yaml"], "data": {"max_length": 5}, "model": {}}):
        VALIDATOR.validate(recipe)
    for missing in GOOD:
        assert not VALIDATOR.is_valid({key: value for key, value in GOOD.items() if key != missing})
    for wrong in ({"extends": []}, {"extends": ""}, {"extends": 3}, {"extends": "b", "zzz": 1}):
        assert not VALIDATOR.is_valid(wrong)
    assert not VALIDATOR.is_valid({**GOOD, "data": {"max_length": 5}})
    assert not VALIDATOR.is_valid({**GOOD, "model": {"revision": "main"}})


def test_synonyms_are_keys_but_not_beside_the_other_name() -> None:
    values = {"activation_checkpointing": True, "start_from": "new", "loss": "ipo", "max_new_tokens": 5}
    for (section, theirs), (_, ours) in SYNONYMS.items():
        value = values.get(ours, 0.5)
        VALIDATOR.validate({**GOOD, section: {theirs: value}})
        assert not VALIDATOR.is_valid({**GOOD, section: {theirs: value, ours: value}})


def test_every_key_has_its_description_and_every_optional_one_its_default() -> None:
    for section, model in SECTIONS.items():
        if section == "data.eval":
            continue  # the items of data.train once more
        named = {"data.train": "Source", "rewards": "Reward"}.get(section, section.title())
        node = SCHEMA["$defs"][named] if section else SCHEMA
        assert node["additionalProperties"] is False
        for name, field in model.model_fields.items():
            found = node["properties"][name]
            assert found["description"] == field.description
            if not field.is_required() and name not in SECTIONS:
                assert found["default"] == json.loads(json.dumps(field.default))
    assert set(SCHEMA["properties"]) == {*SECTIONS[""].model_fields, *OTHER_NAMES, EXTENDS}


def test_no_object_takes_keys_that_it_does_not_name_but_a_mapping_of_columns_and_the_gates() -> None:
    def objects(node: Any) -> list[dict[str, Any]]:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        here = [node] if isinstance(node, dict) and node.get("type") == "object" else []
        return here + [found for part in inner for found in objects(part)]

    open_ones = [node for node in objects(SCHEMA) if node.get("additionalProperties") is not False]
    columns, gate = (node["additionalProperties"] for node in open_ones)
    assert columns == {"type": "string", "minLength": 1}
    accepted = ["< 1.9", ">=0.05", " == -1e-3", ">= before - 0.01", "> baseline * 0.98", "<before"]
    assert all(re.search(gate["pattern"], text) for text in accepted)
    refused = ["1.9", "< ", "<> 1", "> after", "< 1.9 and > 1", ">= before - x", "x < 1"]
    assert not any(re.search(gate["pattern"], text) for text in refused)


def test_the_line_that_names_the_schema_to_an_editor_is_a_comment(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "chat.yaml").read_text()
    (tmp_path / "r.yaml").write_text("# yaml-language-server: $schema=recipe.schema.json\n" + text)
    assert load(tmp_path / "r.yaml").recipe == load(ROOT / "recipes" / "chat.yaml").recipe
    (tmp_path / "r.yaml").write_text(f"$schema: recipe.schema.json\n{text}")
    with pytest.raises(RecipeError, match=r"\$schema: unknown key"):
        load(tmp_path / "r.yaml")
