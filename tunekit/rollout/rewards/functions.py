"""Rewards of one answer, by name; their keyword-only parameters are keys of a reward in a recipe."""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, SchemaError

from tunekit.errors import RecipeError
from tunekit.evals.extract import EXTRACT, extractor
from tunekit.evals.metrics.metric import Answered
from tunekit.evals.metrics.text import as_number
from tunekit.evals.metrics.tool_calls import tool_call_match as calls_match
from tunekit.evals.sandbox import run_code
from tunekit.rollout.samples import Response

Rewarding = Callable[[Response], float]
MAKERS: dict[str, Callable[..., Rewarding]] = {}
NEEDS_ANSWER = {"exact_match", "number_match", "tool_call_match", "code"}  # of the row


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

    As in GSM8K (Cobbe et al. 2021, arXiv:2110.14168), whose whole solution may stand as the answer of the row.
    """
    taken = extractor(extract or "gsm8k")

    def rewarding(response: Response) -> float:
        said, wanted = as_number(taken(response.text)), as_number(EXTRACT["gsm8k"](_gold(response)))
        if wanted is None:
            raise ValueError(f"the answer of the row has no number: {_gold(response)[:80]!r}")
        return float(said is not None and abs(said - wanted) <= 1e-6 * max(1.0, abs(wanted)))

    return rewarding


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
        Draft202012Validator.check_schema(schema)
    except (OSError, ValueError, SchemaError) as error:
        reason = error.message if isinstance(error, SchemaError) else str(error)
        raise RecipeError(f"rewards: schema_path: {schema_path}: no JSON schema: {reason}") from None
    validator = Draft202012Validator(schema)

    def rewarding(response: Response) -> float:
        for text in (response.text, EXTRACT["code"](response.text)):
            try:
                return float(validator.is_valid(json.loads(text)))
            except (ValueError, RecursionError):
                continue
        return 0.0

    return rewarding


@reward
def tool_call_match() -> Rewarding:
    """1 where the tool calls of the answer are those of the row, as the metric of that name judges (evals/metrics)."""

    def rewarding(response: Response) -> float:
        tools = json.loads(response.prompt.tools) if response.prompt.tools else []
        functions = [each.get("function", each) for each in tools]
        answered = Answered(response.text, (_gold(response),), response.text, {"function": functions})
        return float(calls_match(answered) or 0.0)

    return rewarding


@reward
def code() -> Rewarding:
    """1 where the code of the answer passes the tests of the row, which are its answer, in a process with limits."""
    return lambda response: float(run_code(f"{EXTRACT['code'](response.text)}\n\n{_gold(response)}\n").ok)


def of_user(function: Callable[..., Any], name: str) -> Callable[[Response], Any]:
    """A function of the user's own: the text first, and by name those of the facts about it that it takes."""
    signature = inspect.signature(function)
    any_name = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
    known = ("prompt", "answer", "source", "num_tokens", "ended")
    odd = [
        each.name
        for each in list(signature.parameters.values())[1:]
        if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)
        and each.default is each.empty
        and each.name not in known
    ]
    if odd:
        raise RecipeError(
            f"rewards: {name} takes {odd[0]}, which no answer has", f"It may take the text, and {', '.join(known)}."
        )
    taken = [each for each in known if any_name or each in signature.parameters]

    def rewarding(response: Response) -> Any:
        prompt = response.prompt
        messages = prompt.prompt if isinstance(prompt.prompt, str) else list(prompt.prompt)
        facts = {
            "prompt": messages,
            "answer": prompt.answer,
            "source": prompt.source,
            "num_tokens": response.num_tokens,
            "ended": response.ended,
        }
        return function(response.text, **{key: facts[key] for key in taken})

    return rewarding
