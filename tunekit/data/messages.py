"""The messages that a chat template gets, made of those of a row: system prompt, reasoning, tool calls.

Training, prompts and the check of a saved model all go through `prepare_messages`, so that a model is asked what it
was trained to answer.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tunekit.data.rows import Messages, Refused

Message: TypeAlias = dict[str, Any]

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# Reasoning at the start of an answer, as models write it that have no key of its own for it.
THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)

SYSTEM_REPLACED = "system messages replaced by data.system"
SYSTEM_DROPPED = "system messages taken out (data.system_mode: drop)"
REASONING_DROPPED = "turns whose reasoning was taken out (data.reasoning: drop)"


@dataclass(frozen=True)
class Prepared:
    """Messages as the template gets them, the number of each in its row (-1: data.system), and what was changed."""

    messages: list[Message] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def place(self, i: int) -> str:
        """How a person would name the message `i`."""
        return name_message(self.numbers[i], self.messages[i])


def prepare_messages(messages: Messages, *, system: str | None, system_mode: str, reasoning: str) -> Prepared:
    """Takes out what the recipe drops, puts in data.system, and parses the arguments of tool calls.

    `system_mode`: `keep` (`system` goes before conversations without a system message), `replace` (all get it) or
    `drop`. Raises `Refused` where a message is not in the chat form, or nothing is left of an answer or of the row.
    """
    prepared = Prepared()
    for i, message in enumerate(messages):
        _check_form(i, message)
        if message["role"] == "system" and system_mode != "keep":
            prepared.notes.append(SYSTEM_REPLACED if system_mode == "replace" else SYSTEM_DROPPED)
            continue
        prepared.messages.append(_prepare_message(i, message, reasoning, prepared.notes))
        prepared.numbers.append(i)
    if not prepared.messages:
        raise Refused("the conversation has no messages")
    if system is not None and system_mode != "drop" and prepared.messages[0]["role"] != "system":
        prepared.messages.insert(0, {"role": "system", "content": system})
        prepared.numbers.insert(0, -1)
    return prepared


def name_message(number: int, message: Any) -> str:
    """ "message 3 (assistant)", by its number in the row."""
    return "data.system" if number < 0 else f"message {number} ({message['role']})"


def split_reasoning(content: str) -> tuple[str, str]:
    """The text of the `<think>` block at the start of an answer (`""`: none), and the rest."""
    block = THINK.match(content)
    return (block.group(1), content[block.end() :]) if block else ("", content)


def has_reasoning(message: Message) -> bool:
    """Whether a message states its reasoning, under a key of its own or at the start of its content."""
    if any(message.get(key) for key in REASONING_KEYS):
        return True
    return message["role"] == "assistant" and THINK.match(message.get("content", "")) is not None


def without_reasoning(message: Message) -> Message:
    kept = {key: value for key, value in message.items() if key not in REASONING_KEYS}
    if message["role"] == "assistant" and "content" in kept:
        kept["content"] = split_reasoning(kept["content"])[1]
    return kept


def functions(message: Message) -> list[dict[str, Any]]:
    """What the tool calls of a message call: `{"name": ..., "arguments": ...}` each."""
    return [call.get("function", call) for call in message.get("tool_calls", [])]


def older_form(message: Message) -> Message:
    """Tool calls as templates that are older than transformers' convention want them: arguments are JSON text."""
    if not message.get("tool_calls"):
        return message
    texts = [json.dumps(function["arguments"], ensure_ascii=False) for function in functions(message)]
    calls = [_with_arguments(call, text) for call, text in zip(message["tool_calls"], texts, strict=True)]
    return {**message, "content": message.get("content", ""), "tool_calls": calls}


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys of objects included, in no certain order."""
    rest = [value]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            rest += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            rest += value


def _check_form(i: int, message: Any) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Refused(f"message {i} is not an object with a role")
    for key in ("content", *REASONING_KEYS):
        value = message.get(key)
        if value is not None and not isinstance(value, str):
            raise Refused(f"{name_message(i, message)}: {key} must be a string, found {str(value)[:40]!r}")


def _prepare_message(i: int, message: dict[str, Any], reasoning: str, notes: list[str]) -> Message:
    prepared = {key: value for key, value in message.items() if key != "train" and value is not None}
    if "tool_calls" in prepared:
        prepared["tool_calls"] = _parse_calls(name_message(i, message), prepared["tool_calls"])
    if reasoning == "drop" and message["role"] == "assistant" and has_reasoning(prepared):
        prepared = without_reasoning(prepared)
        notes.append(REASONING_DROPPED)
        if not prepared.get("content", "").strip() and not prepared.get("tool_calls"):
            raise Refused(
                f"{name_message(i, message)}: nothing is left of it without its reasoning",
                "Take the row out, or set data.reasoning: keep.",
            )
    return prepared


def _parse_calls(place: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise Refused(f"{place}: tool_calls must be a list")
    parsed = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refused(f'{place}: a tool call must be {{"function": {{"name": ..., "arguments": ...}}}}')
        arguments = _parse_arguments(place, function["name"], function.get("arguments") or {})
        parsed.append(_with_arguments(call, arguments))
    return parsed


def _parse_arguments(place: str, name: str, arguments: Any) -> dict[str, Any]:
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refused(
            f"{place}: the arguments of its call of {name} are not a JSON object: {str(arguments)[:60]!r}",
            'Write them as {"key": value, ...}, or as the JSON text of that.',
        )
    return value


def _with_arguments(call: dict[str, Any], arguments: Any) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": {**call["function"], "arguments": arguments}}
    return {**call, "arguments": arguments}
