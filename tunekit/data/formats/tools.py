"""Tool schemas and tool calls, in the one form that chat templates and servers share: OpenAI's."""

import json
from functools import lru_cache
from typing import Any

from tunekit.data.rows import Refused
from tunekit.data.sources import strict_json
from tunekit.data.sources.source import shown

SCHEMA = '{"type": "function", "function": {"name": "...", "description": "...", "parameters": {...}}}'
CALL = '{"type": "function", "function": {"name": "...", "arguments": {...}}}'


def read_tools(value: Any) -> str | None:
    """The JSON text of a list of schemas, each under `function`; None where there are none. Raises `Refused`."""
    if isinstance(value, str):
        return _read_text(value) if value.strip() else None
    return _write(value) if value else None


@lru_cache(maxsize=256)
def _read_text(text: str) -> str | None:
    """Cached, as most rows of a data set repeat the tools of another."""
    try:
        tools = strict_json.loads(text)
    except ValueError as error:
        raise Refused(f"tools is not JSON: {error}") from error
    return _write(tools) if tools else None


def _write(tools: Any) -> str:
    if not isinstance(tools, list):
        raise Refused(f"tools must be a list, or the JSON text of one, found {shown(tools)}")
    schemas = []
    for i, tool in enumerate(tools):
        schema = tool if isinstance(tool, dict) and "function" in tool else {"type": "function", "function": tool}
        if not isinstance(schema["function"], dict) or not isinstance(schema["function"].get("name"), str):
            raise Refused(f"tools[{i}] has no name: {shown(tool)}", f"A tool is {SCHEMA}, or what is under function.")
        schemas.append(schema)
    try:
        return json.dumps(schemas, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(f"tools cannot be written as JSON: {error}") from error


def read_call(call: Any) -> dict[str, Any]:
    """A tool call with `type`, `function`, and `id` if it has one; its arguments stay as they are. Raises `Refused`."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Refused(f"a tool call must have a name and arguments, found {shown(call)}", f"A call is {CALL}.")
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    if not isinstance(arguments, dict) and not _is_object(arguments):
        raise Refused(
            f"the arguments of the tool call {function['name']} are no JSON object: {shown(arguments)}",
            f"A call is {CALL}; arguments may also be the JSON text of an object.",
        )
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def calls_in(text: Any) -> list[dict[str, Any]] | None:
    """The calls that a text writes as JSON, `{"name", "arguments"}` or a list of these; None: it is another text."""
    try:
        value = strict_json.loads(text)
        calls = value if isinstance(value, list) else [value]
        if not calls or not all(isinstance(call, dict) and "arguments" in call for call in calls):
            return None
        return [read_call(call) for call in calls]
    except (AttributeError, ValueError):  # no text; no JSON or no call
        return None


def _is_object(text: Any) -> bool:
    try:
        return isinstance(text, str) and isinstance(strict_json.loads(text), dict)
    except ValueError:
        return False
