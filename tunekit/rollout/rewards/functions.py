"""Rewards of one answer, by name; their keyword-only parameters are keys of a reward in a recipe."""

import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonschema import SchemaError
from jsonschema.validators import Draft202012Validator, validator_for
from referencing import Registry

from tunekit.errors import DataError, RecipeError
from tunekit.evals.extract import EXTRACT, extractor, plain_number
from tunekit.evals.metrics.metric import Answered
from tunekit.evals.metrics.text import as_number
from tunekit.evals.metrics.tool_calls import tool_call_match as calls_match
from tunekit.evals.sandbox import run_code
from tunekit.rollout.samples import Response

Rewarding = Callable[[Response], float]
MAKERS: dict[str, Callable[..., Rewarding]] = {}
NEEDS_ANSWER = {"exact_match", "number_match", "tool_call_match", "code"}  # of the row
_FRACTION = re.compile(r"(-?[$0-9,.]*[0-9])\s*/\s*([0-9]+)[^0-9]*\Z")  # with the last number of a text as divisor


def reward(make: Callable[..., Rewarding]) -> Callable[..., Rewarding]:
    """Registers what makes a reward from its keys, under its name."""
    MAKERS[make.__name__] = make
    return make


def _gold(response: Response) -> str:
    assert response.prompt.answer is not None
    return response.prompt.answer


@reward
def exact_match(*, extract: str | None = None) -> Rewarding:
    """1 where the answer, or what `extract` takes from it, is that of the row, white space around both aside."""
    taken = extractor(extract or "text")
    return lambda response: float(taken(response.text).strip() == _gold(response).strip())


@reward
def number_match(*, extract: str | None = None) -> Rewarding:
    """1 where the number of the answer is that of the row: what follows "####", else the last one.

    As in GSM8K (Cobbe et al. 2021, arXiv:2110.14168), whose whole solution may stand as the answer of the row. The two
    are equal as numbers, up to one in a billion: 3/4 is 0.75 and $1,234.00 is 1234, but 1234567 is not 1234568.
    """
    taken = None if extract is None else extractor(extract)

    def rewarding(response: Response) -> float:
        said = _number_of(response.text) if taken is None else as_number(taken(response.text))
        wanted = _number_of(_gold(response))
        if wanted is None:
            raise ValueError(f"the answer of the row has no number: {_gold(response)[:80]!r}")
        return float(said is not None and math.isclose(said, wanted, rel_tol=1e-9))

    return rewarding


def _number_of(text: str) -> float | None:
    """What stands behind "####", else the whole text where it is a number, else the last number or fraction in it."""
    _, marked, behind = text.partition("####")
    whole = as_number(behind.strip().partition("\n")[0] if marked else text)
    if whole is not None:
        return whole
    fraction = None if marked else _FRACTION.search(text)
    return as_number(f"{plain_number(fraction[1])}/{fraction[2]}" if fraction else EXTRACT["gsm8k"](text))


@reward
def regex(*, pattern: str) -> Rewarding:
    """1 where `pattern` is found in the answer; a full stop in it takes line feeds too."""
    compiled = re.compile(pattern, re.DOTALL)
    return lambda response: float(compiled.search(response.text) is not None)


@reward
def length(*, target: int) -> Rewarding:
    """1 at `target` tokens, less in proportion to the distance from it, and -1 from twice as many on."""
    return lambda response: max(-1.0, 1.0 - abs(response.num_tokens - target) / target)


@reward
def json_schema(*, schema_path: str) -> Rewarding:
    """1 where the answer, or its first fenced block, is JSON that the schema in the file `schema_path` accepts."""
    try:
        schema = json.loads(Path(schema_path).read_text(encoding="utf-8"))
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
    except (OSError, ValueError, SchemaError) as error:
        reason = error.message if isinstance(error, SchemaError) else str(error)
        raise RecipeError(f"rewards: schema_path: {schema_path}: no JSON schema: {reason}") from None
    validator = kind(schema, registry=Registry())  # which fetches no schema of others

    def rewarding(response: Response) -> float:
        for text in (response.text, EXTRACT["code"](response.text)):
            try:
                value = json.loads(text, parse_constant=_refuse_constant)
            except (ValueError, RecursionError):
                continue
            return float(validator.is_valid(value))
        return 0.0

    return rewarding


def _refuse_constant(name: str) -> None:
    """NaN and Infinity, which Python reads and JSON (RFC 8259) does not have."""
    raise ValueError(f"{name} is no JSON")


@reward
def tool_call_match() -> Rewarding:
    """1 where the tool calls of the answer are those of the row, as the metric of that name judges (evals/metrics)."""

    def rewarding(response: Response) -> float:
        tools = json.loads(response.prompt.tools) if response.prompt.tools else []
        functions = [each.get("function", each) for each in tools]
        answered = Answered(response.text, (_gold(response),), response.text, {"function": functions})
        try:
            return float(calls_match(answered) or 0.0)
        except DataError as error:  # of one row: counted as the other failures are
            raise ValueError(error.message) from error

    return rewarding


@reward
def code() -> Rewarding:
    """1 where the code of the answer passes the tests of the row, which are its answer, in a process with limits."""
    return lambda response: float(run_code(f"{EXTRACT['code'](response.text)}\n\n{_gold(response)}\n").ok)


def of_user(function: Callable[..., Any], name: str) -> Callable[[Response], Any]:
    """A function of the user's own: the text first, and by name those of the facts about it that it takes."""
    named = list(inspect.signature(function).parameters.values())
    text = next((each.name for each in named[:1] if each.kind is each.POSITIONAL_OR_KEYWORD), "")
    known = [each for each in ("prompt", "answer", "source", "num_tokens", "ended") if each != text]
    asked = {each.name: each for each in named if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)}
    odd = [key for key, each in asked.items() if each.default is each.empty and key not in (text, *known)]
    if odd:
        raise RecipeError(
            f"rewards: {name} takes {odd[0]}, which no answer has", f"It may take the text, and {', '.join(known)}."
        )
    every = any(each.kind is each.VAR_KEYWORD for each in named)
    taken = [key for key in known if every or key in asked]

    def rewarding(response: Response) -> Any:
        prompt = response.prompt
        messages = prompt.prompt if isinstance(prompt.prompt, str) else [dict(each) for each in prompt.prompt]
        facts = {
            "prompt": messages,
            "answer": prompt.answer,
            "source": prompt.source,
            "num_tokens": response.num_tokens,
            "ended": response.ended,
        }
        return function(response.text, **{key: facts[key] for key in taken})

    return rewarding
