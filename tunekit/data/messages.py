"""The messages that a chat template gets, made of those of a row: system prompt, reasoning, tool calls.

Training, prompts and the check of a saved model all go through `prepare_messages`, so that a model is asked what it
was trained to answer. Messages come in the form that `tunekit.data.formats` gives them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tunekit.data.notes import REASONING_DROPPED, SYSTEM_DROPPED, SYSTEM_REPLACED
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Messages, Refused

Message: TypeAlias = dict[str, Any]

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# Around reasoning at the start of an answer, as models write it that have no key of its own for it.
OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Prepared:
    """Messages as the template gets them, the number of each in its row (-1: data.system), and what was changed."""

    messages: list[Message] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def place(self, i: int) -> str:
        """How a person would name the message `i`."""
        return name_message(self.numbers[i], self.messages[i])


def prepare_messages(messages: Messages, rendering: Rendering) -> Prepared:
    """Takes out what the recipe drops, puts in data.system, and parses the arguments of tool calls.

    Raises `Refused` where nothing is left of an answer or of the row.
    """
    prepared = Prepared()
    for i, message in enumerate(messages):
        if message["role"] == "system" and rendering.system_mode != "keep":
            prepared.notes.append(SYSTEM_REPLACED if rendering.system_mode == "replace" else SYSTEM_DROPPED)
            continue
        prepared.messages.append(_prepare_message(i, message, rendering.reasoning, prepared.notes))
        prepared.numbers.append(i)
    if not prepared.messages:
        raise Refused("the conversation has no messages")
    if rendering.system is not None and rendering.system_mode != "drop" and prepared.messages[0]["role"] != "system":
        prepared.messages.insert(0, {"role": "system", "content": rendering.system})
        prepared.numbers.insert(0, -1)
    return prepared


def name_message(number: int, message: Message) -> str:
    """ "message 3 (assistant)", by its number in the row."""
    return "data.system" if number < 0 else f"message {number} ({message['role']})"


def split_reasoning(content: str) -> tuple[str, str]:
    """The reasoning in tags at the start of an answer (`""`: none, or empty), and the rest.

    Without the opening tag too: models that are asked with it (DeepSeek-R1, QwQ) write the closing one alone.
    """
    thought, closing, answer = content.partition(CLOSE)
    before, opening, inside = thought.partition(OPEN)
    if not closing or (opening and before.strip()):
        return "", content
    return inside if opening else before, answer.lstrip()


def has_reasoning(message: Message) -> bool:
    """Whether a message states its reasoning, under a key of its own or at the start of its content."""
    if any(message.get(key) for key in REASONING_KEYS):
        return True
    content = message.get("content", "")
    return message["role"] == "assistant" and len(split_reasoning(content)[1]) < len(content)


def without_reasoning(message: Message) -> Message:
    kept = {key: value for key, value in message.items() if key not in REASONING_KEYS}
    if message["role"] == "assistant" and "content" in kept:
        kept["content"] = split_reasoning(kept["content"])[1]
    return kept


def functions(message: Message) -> list[dict[str, Any]]:
    """What the tool calls of a message call: `{"name": ..., "arguments": ...}` each."""
    return [call["function"] for call in message.get("tool_calls", [])]


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


def _prepare_message(i: int, message: dict[str, Any], reasoning: str, notes: list[str]) -> Message:
    prepared = {key: value for key, value in message.items() if key != "train" and value is not None}
    if "tool_calls" in prepared:
        prepared["tool_calls"] = [_with_parsed_arguments(call) for call in prepared["tool_calls"]]
    if reasoning == "drop" and message["role"] == "assistant" and has_reasoning(prepared):
        prepared = without_reasoning(prepared)
        notes.append(REASONING_DROPPED)
        if not prepared.get("content", "").strip() and not prepared.get("tool_calls"):
            raise Refused(
                f"{name_message(i, message)}: nothing is left of it without its reasoning",
                "Take the row out, or set data.reasoning: keep.",
            )
    return prepared


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    return _with_arguments(call, json.loads(arguments) if isinstance(arguments, str) else arguments)


def _with_arguments(call: dict[str, Any], arguments: Any) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": arguments}}
