"""The kinds of values that keys of a recipe have, and what all its sections share."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from tunekit.recipe.foreign import VALUES
from tunekit.recipe.losses import LOSSES, USERS_OWN, is_loss

MAX_COUNT = 2**31 - 1
MAX_NUMBER = 1e9  # of what has no limit of its own: more is a slip, and some of it ends in a traceback
MAX_LAYER = 9999
_RANGE = r"\s*[0-9]{1,4}\s*(-\s*[0-9]{1,4}\s*)?"
LAYERS = rf"^{_RANGE}(,{_RANGE})*$"
_NUMBER = r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
CONDITION = rf"\s*(<=|>=|==|<|>)\s*({_NUMBER}|(before|baseline)(\s*[-+*]\s*{_NUMBER})?)\s*"
LEFT_OUT: Any = None
VARIABLE = re.compile(r"\$(\w|\{)")
PATH_SCHEMA = {"type": "string", "minLength": 1, "not": {"pattern": VARIABLE.pattern}}
NOT_EXPANDED = "environment variables are not expanded; write it out, or let the shell expand it on the command line"
ATTENTIONS = VALUES["model.attn_implementation"]


def _null_or(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    return None if value is None else check(value)


def as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def layers(value: Any) -> Any:
    """`"0-3,7"` as (0, 1, 2, 3, 7); a list stays what it is."""
    if not isinstance(value, str):
        return as_tuple(value)
    layers: set[int] = set()
    for part in value.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise PydanticCustomError("layers", 'must be ranges such as "0-19" or "0-3,7", or a list of layer numbers')
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def rows_or_share(value: float | int) -> float | int:
    if value > MAX_COUNT:
        raise PydanticCustomError("rows_or_share", f"must be at most {MAX_COUNT}")
    if (isinstance(value, int) and value >= 0) or 0 < value < 1:
        return value
    raise PydanticCustomError("rows_or_share", "must be a share of rows between 0 and 1, or a number of rows (0: none)")


def as_path(value: str) -> str:
    """The path with a leading `~` written out."""
    if VARIABLE.search(value):
        raise PydanticCustomError("path", f"must be a path without $: {NOT_EXPANDED}")
    path = os.path.expanduser(value)
    if path.startswith("~"):
        raise PydanticCustomError("path", "must be a path: there is no user of this name; ./~x is a file called ~x")
    return path


def checkpoint(value: str) -> str:
    if re.fullmatch(r"auto|never|step-[0-9]+|.*/.*", value, re.DOTALL):
        return value
    message = "must be {expected}, or the path of a checkpoint, such as out/x/checkpoints/step-N"
    raise PydanticCustomError("checkpoint", message, {"expected": "'auto' or 'never'"})


def attention(value: str) -> str:
    if value.lower() not in ATTENTIONS:
        return value
    names = {"expected": ", ".join(f"'{name}'" for name in dict.fromkeys(("auto", "eager", *ATTENTIONS.values())))}
    raise PydanticCustomError("attention", "must be a name of transformers', such as {expected}", names)


def loss(value: str) -> str:
    if is_loss(value):
        return value
    names = {"expected": ", ".join(f"'{name}'" for name in LOSSES)}
    raise PydanticCustomError("loss", "must be one of {expected}, or a function as path/to/file.py:name", names)


def condition(value: str) -> str:
    if re.fullmatch(CONDITION, value):
        return value
    message = "must be a comparison in quotes, such as {expected}"
    raise PydanticCustomError("condition", message, {"expected": "'< 1.9', '>= 0.05' or '>= before - 0.01'"})


T = TypeVar("T")
Derived = Annotated[T, WrapValidator(_null_or)]
Text = Annotated[str, Field(min_length=1)]
Names = Annotated[list[Text], Field(min_length=1)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(as_path), WithJsonSchema(PATH_SCHEMA)]
Checkpoint = Annotated[
    PathText,
    AfterValidator(checkpoint),
    WithJsonSchema({**PATH_SCHEMA, "pattern": "^(auto|never|step-[0-9]+)$|/"}),
]
Condition = Annotated[str, AfterValidator(condition), WithJsonSchema({"type": "string", "pattern": f"^{CONDITION}$"})]
Attention = Annotated[
    Text,
    AfterValidator(attention),
    WithJsonSchema({"type": "string", "minLength": 1, "not": {"enum": list(ATTENTIONS)}}),
]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Positive = Annotated[float, Field(gt=0, le=MAX_NUMBER)]
NotNegative = Annotated[float, Field(ge=0, le=MAX_NUMBER)]
Loss = Annotated[
    str,
    AfterValidator(loss),
    WithJsonSchema({"anyOf": [{"enum": list(LOSSES)}, {"type": "string", "pattern": rf"^{USERS_OWN.pattern}$"}]}),
]
Losses = Annotated[
    tuple[Loss, ...],
    Field(min_length=1),
    BeforeValidator(as_tuple, json_schema_input_type=Annotated[tuple[Loss, ...], Field(min_length=1)] | Loss),
]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Metric = Literal["exact_match", "token_f1"]
Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
]
RowsOrShare = Annotated[
    float | int,
    AfterValidator(rows_or_share),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                {"type": "integer", "minimum": 0, "maximum": MAX_COUNT},
            ]
        }
    ),
]
Layer = Annotated[int, Field(ge=0, le=MAX_LAYER)]
Layers = Annotated[
    tuple[Layer, ...],
    BeforeValidator(layers, json_schema_input_type=tuple[Layer, ...] | Annotated[str, Field(pattern=LAYERS)]),
]
Trackers = Annotated[
    tuple[Tracker, ...], BeforeValidator(as_tuple, json_schema_input_type=tuple[Tracker, ...] | Tracker)
]


class Section(BaseModel):
    """What all sections share: immutable, no unknown key, no conversion between types, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
