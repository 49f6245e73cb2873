"""Calls of tools by what is called: name and arguments, in any of the forms that models write them in."""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunekit.errors import DataError
from tunekit.evals.metrics.metric import Answered, item_metric

Call = tuple[str, dict[str, Any]]
_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)|<functioncall>(.*?)(?:</functioncall>|<\||\Z)", re.DOTALL)
_FENCED = re.compile(r"```(?:json|python|tool_code)?\s*\n(.*?)```", re.DOTALL)
_OPENING = re.compile(r"[{\[]")
# Glaive puts the object of the arguments in single quotes, which is no JSON.
_QUOTED = re.compile(r"(\"arguments\":\s*)'(.*)'(\s*\}\s*)\Z", re.DOTALL)
# The types by which functions are described: those of BFCL, and "number" and "object" of JSON Schema.
_TYPES: dict[str, type] = {
    **{"string": str, "any": str, "integer": int, "float": float, "number": float, "boolean": bool},
    **{"array": list, "tuple": list, "dict": dict, "object": dict},
}


@item_metric("tool_call_match")
def tool_call_match(answered: Answered) -> float:
    """1 where the calls are those of the reference, in any order, and no others.

    A reference is the JSON of one call or a list of calls: `{"name", "arguments"}`, or a possible answer of BFCL (Patil
    et al. 2024, gorilla.cs.berkeley.edu): `{name: {argument: [accepted values]}}`, where "" among the values says that
    the argument may be left out. Values are compared as BFCL's AST checker does: texts by their letters and digits,
    an integer where a decimal is due but not the other way about. Types are those of the functions that the row
    describes under `function`; a number that nothing describes may be written either way. A dot in the name of a
    function may be an underscore, as BFCL has it for the models that cannot write dots.
    Raises `DataError` for a reference that is none of these.
    """
    said = read_calls(answered.completion or answered.prediction)
    described = _described(answered.row.get("function"))
    return float(any(_matches(said, _wanted(each), described) for each in answered.references))


def read_calls(text: str) -> list[Call]:
    """The calls in a completion: tags of Hermes, Qwen and Glaive, JSON (fenced or not), or Python calls in a list."""
    tagged = [first or second for first, second in _TAGGED.findall(text)]
    for parts in (tagged, _FENCED.findall(text), [text]):
        if found := [call for part in parts for call in _from_python(part) or [*_from_json(part)]]:
            return found
    return []


def _from_json(text: str) -> Iterator[Call]:
    """The calls of all objects and lists of JSON that stand in the text."""
    text, decoder, position = _QUOTED.sub(r"\1\2\3", text), json.JSONDecoder(), 0
    while match := _OPENING.search(text, position):
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position = match.end()
            continue
        for each in value if isinstance(value, list) else [value]:
            if (call := _as_call(each)) is not None:
                yield call


def _as_call(value: Any) -> Call | None:
    if not isinstance(value, dict):
        return None
    call = value["function"] if isinstance(value.get("function"), dict) else value
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            return None
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def _from_python(text: str) -> list[Call]:
    """`[f(a=1, b="x"), g()]` or one call alone, read and never run; no call where one of them cannot be read."""
    try:
        body = ast.parse(text.strip(), mode="eval").body
        nodes = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
        return [_python_call(node) for node in nodes]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args or any(word.arg is None for word in node.keywords):
        raise ValueError("no call by keywords")
    return ast.unparse(node.func), {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}


def _described(functions: Any) -> dict[str, Mapping[str, Any]]:
    """The `parameters` of each described function by its name; a table may have the list as a text of JSON."""
    if isinstance(functions, str):
        try:
            functions = json.loads(functions)
        except ValueError:
            return {}
    found = functions if isinstance(functions, list) else [functions]
    return {each["name"]: each.get("parameters", {}) for each in found if isinstance(each, dict) and "name" in each}


def _wanted(reference: str) -> list[tuple[str, dict[str, list[Any]], bool]]:
    """Name, accepted values of each argument, and whether "" among them is a value and not the leave to do without."""
    try:
        value = json.loads(reference)
        calls = value if isinstance(value, list) else [value]
        return [_wanted_call(each) for each in calls]
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"tool_call_match: the reference {reference[:80]!r} is no call ({error})",
            'Give {"name": "f", "arguments": {"x": 1}}, {"f": {"x": [1, 2]}}, or a list of these.',
        ) from error


def _wanted_call(value: dict[str, Any]) -> tuple[str, dict[str, list[Any]], bool]:
    if (call := _as_call(value)) is not None:
        return call[0], {key: [_accepting(each)] for key, each in call[1].items()}, True
    ((name, accepted),) = value.items()
    if not all(isinstance(values, list) for values in accepted.values()):
        raise ValueError("accepted values are a list")
    return name, accepted, False


def _accepting(value: Any) -> Any:
    """An argument as BFCL writes what it accepts: the values of an object, also of one in a list, are lists."""
    if isinstance(value, list):
        return [_accepting(each) if isinstance(each, dict) else each for each in value]
    return {key: [each] for key, each in value.items()} if isinstance(value, dict) else value


def _matches(said: Sequence[Call], wanted: Sequence[Any], described: Mapping[str, Mapping[str, Any]]) -> bool:
    if len(said) != len(wanted):
        return False
    left = list(said)
    for name, accepted, exact in wanted:  # each takes the first call that fits, as in BFCL
        parameters = described.get(name, {})
        found = next((n for n, call in enumerate(left) if _is_call(call, name, accepted, exact, parameters)), None)
        if found is None:
            return False
        del left[found]
    return True


def _is_call(
    call: Call, name: str, accepted: Mapping[str, list[Any]], exact: bool, parameters: Mapping[str, Any]
) -> bool:
    arguments, properties = call[1], parameters.get("properties", {})
    if call[0] not in (name, name.replace(".", "_")) or not arguments.keys() <= accepted.keys():
        return False
    if not arguments.keys() >= set(parameters.get("required", ())):
        return False
    return all(
        _is_accepted(arguments[key], values, properties.get(key, {}))
        if key in arguments
        else "" in values and not exact
        for key, values in accepted.items()
    )


def _is_accepted(value: Any, accepted: Sequence[Any], declared: Mapping[str, Any]) -> bool:
    example = _first_type(accepted)
    kind = _TYPES.get(str(declared.get("type"))) or (float if example is int else example or str)
    if declared.get("type") == "tuple" and isinstance(value, tuple):
        value = list(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # what is accepted may be of another type than the declared one, such as a variable
        return type(value) is example and value in accepted
    inner = _TYPES.get(str(declared.get("items", {}).get("type")))
    if inner and isinstance(value, list) and not any(_are_of_type(value, each, inner) for each in accepted):
        return False
    return _equals_one(value, accepted)


def _first_type(accepted: Sequence[Any]) -> type | None:
    return next((type(each) for each in accepted if each != ""), None)


def _are_of_type(values: Sequence[Any], accepted: Any, kind: type) -> bool:
    if not isinstance(accepted, list):
        return True
    return all(type(value) in (kind, _first_type(accepted)) for value in values)


def _equals_one(value: Any, accepted: Sequence[Any]) -> bool:
    if isinstance(value, dict):
        return any(_equals_object(value, each) for each in accepted)
    if isinstance(value, list):
        return any(_equals_list(value, list(each)) for each in accepted if isinstance(each, list | str))
    return _bare(value) in map(_bare, accepted)


def _equals_list(value: list[Any], other: list[Any]) -> bool:
    if any(isinstance(each, dict) for each in other):
        return len(value) == len(other) and all(map(_equals_object, value, other))
    return [_bare(each) for each in value] == [_bare(each) for each in other]


def _equals_object(value: Any, accepted: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(accepted, dict) or not value.keys() <= accepted.keys():
        return False
    return all(
        _bare(value[key]) in map(_bare, values) if key in value else "" in values for key, values in accepted.items()
    )


def _bare(value: Any) -> Any:
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"') if isinstance(value, str) else value
