"""The section of a recipe that says what answers are rewarded for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from tunekit.recipe.conflict import Conflict
from tunekit.recipe.losses import USERS_OWN
from tunekit.recipe.types import MAX_NUMBER, Count, PathText, Section, Text

# The functions that a recipe may name, and of each the keys that it takes; those in NEEDED must be given.
REWARDS: dict[str, tuple[str, ...]] = {
    "exact_match": ("extract",),
    "number_match": ("extract",),
    "regex": ("pattern",),
    "length": ("target",),
    "json_schema": ("schema_path",),
    "tool_call_match": (),
    "code": (),
}
NEEDED = ("pattern", "target", "schema_path")


def is_reward(name: str) -> bool:
    return name in REWARDS or USERS_OWN.fullmatch(name) is not None


def not_zero(value: float) -> float:
    if value != 0:
        return value
    raise PydanticCustomError("weight", "must not be 0: remove the reward instead")


def known_reward(value: str) -> str:
    if is_reward(value):
        return value
    names = {"expected": ", ".join(f"'{name}'" for name in REWARDS)}
    raise PydanticCustomError("reward", "must be one of {expected}, or a function as path/to/file.py:name", names)


FUNCTION_SCHEMA = {"anyOf": [{"enum": list(REWARDS)}, {"type": "string", "pattern": rf"^{USERS_OWN.pattern}$"}]}
WEIGHT_SCHEMA = {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER, "not": {"const": 0}}
Function = Annotated[str, AfterValidator(known_reward), WithJsonSchema(FUNCTION_SCHEMA)]
Weight = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER), AfterValidator(not_zero), WithJsonSchema(WEIGHT_SCHEMA)]


class Reward(Section):
    model: PathText | None = Field(
        default=None,
        description="A reward model, which reads prompt and answer, or with label a classifier of the answer.",
    )
    function: Function | None = Field(
        default=None,
        description="A reward by name, or a function of yours as path/to/file.py:name, which needs --allow-code.",
    )
    weight: Weight = Field(default=1.0, description="Factor of this reward in the sum; a negative one punishes.")
    label: Text | None = Field(default=None, description="Label of the classifier whose probability is the reward.")
    extract: Text | None = Field(
        default=None,
        description="What of an answer is compared, for exact_match and number_match: a name or a regular expression "
        "with one group, as in tasks; null: all of it, or its last number.",
    )
    pattern: Text | None = Field(default=None, description="Regular expression that regex looks for in the answer.")
    target: Count | None = Field(default=None, description="Tokens that length wants an answer to have.")
    schema_path: PathText | None = Field(default=None, description="JSON schema that json_schema holds answers to.")


def reward_conflicts(rewards: Sequence[Reward]) -> Iterator[Conflict]:
    """What of the rewards does not go together."""
    for number, reward in enumerate(rewards):
        at = f"rewards.{number}"
        keys = (at, f"{at}.model", f"{at}.function")
        if (reward.model is None) == (reward.function is None):
            found = "neither" if reward.model is None else "both"
            yield Conflict(at, keys, f"names {found} of model and function; give one of them")
        else:
            yield from _keys(reward, at, keys)
        near = get_close_matches(reward.model or "", REWARDS, 1, 0.8)
        if near:
            message = f"names a model; did you mean the function {near[0]}? A folder of this name is ./{reward.model}"
            yield Conflict(f"{at}.model", keys, message)
        for name in ("pattern", "extract"):
            yield from _expression(getattr(reward, name), f"{at}.{name}", name == "extract")


def _keys(reward: Reward, at: str, keys: tuple[str, ...]) -> Iterator[Conflict]:
    whose = "a model" if reward.function is None else reward.function
    taken = ("label",) if reward.function is None else REWARDS.get(reward.function, ())
    for name in ("label", "extract", "pattern", "target", "schema_path"):
        given = getattr(reward, name) is not None
        if given and name not in taken:
            owners = ", ".join(other for other, names in REWARDS.items() if name in names) or "model"
            yield Conflict(f"{at}.{name}", (*keys, f"{at}.{name}"), f"has no effect with {whose}; it is for {owners}")
        if name in NEEDED and name in taken and not given:
            yield Conflict(at, (*keys, f"{at}.{name}"), f"{reward.function} needs {name}")


def _expression(text: str | None, at: str, grouped: bool) -> Iterator[Conflict]:
    if text is None or (grouped and re.fullmatch(r"\w+", text)):  # the name of an extraction
        return
    try:
        re.compile(text)
    except re.error as error:
        yield Conflict(at, (at,), f"no regular expression: {error}")
