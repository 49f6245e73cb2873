"""Calls of tools by what is called: name and arguments, in any of the forms that models write them in."""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunekit.evals.extract import EXTRACT
from tunekit.evals.metrics.metric import Answered, item_metric

Call = tuple[str, dict[str, Any]]
_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)|<functioncall>(.*?)(?:</functioncall>|<\||\Z)", re.DOTALL)
_FENCED = re.compile(r"```(?:json|python|tool_code)?\s*\n(.*?)```", re.DOTALL)


@item_metric("tool_call_match")
def tool_call_match(answered: Answered) -> float:
    """1 where the calls are those of the reference, in any order, and no others.

    A reference is the JSON of one call or a list of calls: `{"name", "arguments"}`, or a possible answer of BFCL (Patil
    et al. 2024, gorilla.cs.berkeley.edu): `{name: {argument: [accepted values]}}`, where "" among the values says that
    the argument may be left out. Whole numbers count as decimals, texts by their letters and digits, as in BFCL.
    """
    said = read_calls(answered.completion or answered.prediction)
    return float(any(_matches(said, json.loads(each)) for each in answered.references))


def read_calls(text: str) -> list[Call]:
    """The calls in a completion: tags of Hermes, Qwen and Glaive, JSON (fenced or not), or Python calls in a list."""
    tagged = [first or second for first, second in _TAGGED.findall(text)]
    fenced = _FENCED.findall(text)
    for part in tagged or fenced or [text]:
        if found := [*_from_json(EXTRACT["json"](part)), *_from_python(part)]:
            rest = (tagged or fenced or [text])[1:]
            return [
                *found,
                *(call for each in rest for call in [*_from_json(EXTRACT["json"](each)), *_from_python(each)]),
            ]
    return []


def _from_json(text: str) -> Iterator[Call]:
    try:
        value = json.loads(text) if text else []
    except ValueError:
        return
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, dict):
            continue
        inner = each.get("function")
        call = inner if isinstance(inner, dict) else each
        name, arguments = call.get("name"), call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                continue
        if isinstance(name, str) and isinstance(arguments, dict):
            yield name, arguments


def _from_python(text: str) -> Iterator[Call]:
    """`[f(a=1, b="x"), g()]` or one call alone; read and never run."""
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for each in body.elts if isinstance(body, ast.List | ast.Tuple) else [body]:
        if not isinstance(each, ast.Call) or each.args:
            continue
        try:
            yield ast.unparse(each.func), {str(word.arg): ast.literal_eval(word.value) for word in each.keywords}
        except ValueError:
            continue


def _matches(said: Sequence[Call], reference: Any) -> bool:
    wanted = reference if isinstance(reference, list) else [reference]
    if len(said) != len(wanted):
        return False
    left = list(said)
    for each in wanted:  # calls with the fewest accepted values first would matter only where two accept the same
        found = next((call for call in left if _is_call(call, each)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _is_call(call: Call, wanted: Mapping[str, Any]) -> bool:
    name, arguments = call
    if "name" in wanted and isinstance(wanted.get("arguments", {}), dict | str):
        given = wanted.get("arguments", {})
        given = json.loads(given or "{}") if isinstance(given, str) else given
        accepted = {key: [value] for key, value in given.items()}
        expected = str(wanted["name"])
    else:
        ((expected, accepted),) = wanted.items()
    if name != expected and name.replace(".", "_") != expected.replace(".", "_"):
        return False
    if not arguments.keys() <= accepted.keys():
        return False
    return all(
        any(_equal(arguments[key], value) for value in values) if key in arguments else "" in values
        for key, values in accepted.items()
    )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, str) and isinstance(other, str):
        return _bare(one) == _bare(other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        # BFCL writes the accepted values of inner keys as lists too.
        return one.keys() == other.keys() and all(
            _equal(value, other[key])
            or (isinstance(other[key], list) and any(_equal(value, each) for each in other[key]))
            for key, value in one.items()
        )
    return bool(one == other)


def _bare(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')
