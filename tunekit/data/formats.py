"""The formats in which people write rows, each turned into a `Conversation` or a `Text` by one function.

A source has one format, that of its first row; a row that does not fit is an error with its place and never a guess.
What is left out: images and other content parts, and the tool schemas beside a conversation (a `tools` column), which
the log names among the keys that are not used.
"""

import itertools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunekit.data.rows import Conversation, Text
from tunekit.data.sources import Row, first_problems
from tunekit.errors import DataError, RecipeError

log = logging.getLogger("tunekit")

Converter = Callable[[dict[str, Any], str], Conversation | Text]
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    # The call stays the text that was written: not every chat template can render `tool_calls`, every one has content.
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


@dataclass(frozen=True)
class Format:
    """A format: the keys a row must have and may have, how it is described, and the function that converts a row.

    `convert(row, source)` raises `ValueError` with the reason where the row does not fit.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    expected: str
    convert: Converter


FORMATS: dict[str, Format] = {}


def _format(
    name: str, required: tuple[str, ...], expected: str, optional: tuple[str, ...] = ()
) -> Callable[[Converter], Converter]:
    """Registers a function as a format; detection asks in the order of registration."""

    def register(convert: Converter) -> Converter:
        FORMATS[name] = Format(name, required, optional, expected, convert)
        return convert

    return register


def detect(row: dict[str, Any]) -> str:
    """The name of the first format whose required keys the row has. Raises `DataError` where there is none."""
    for candidate in FORMATS.values():
        if all(row.get(key) is not None for key in candidate.required):
            return candidate.name
    accepted = "\n".join(f"  {candidate.name}: {candidate.expected}" for candidate in FORMATS.values())
    raise DataError(f"a row with the keys {_keys(row)} is in no known format", f"Accepted:\n{accepted}")


def convert(rows: list[Row], format: str = "auto") -> list[Conversation | Text]:
    """Rows of one source as `Conversation`s or `Text`s. Raises `DataError` with the places of rows that do not fit."""
    if format != "auto" and format not in FORMATS:
        raise RecipeError(f"data: format: {format} is not a format", f"Accepted: auto, {', '.join(FORMATS)}.")
    if not rows:
        raise DataError("no rows")
    first, source = rows[0]
    try:
        chosen = FORMATS[detect(first) if format == "auto" else format]
    except DataError as error:
        raise DataError(f"{source}: {error.message}", error.fix) from error
    converted: list[Conversation | Text] = []
    problems: list[str] = []
    for row, source in rows:
        try:
            converted.append(_convert_row(row, source, chosen))
        except ValueError as error:
            problems.append(f"{source}: {error}")
    if problems:
        raise DataError(
            f"{len(problems)} of {len(rows)} rows do not fit the format {chosen.name}:\n{first_problems(problems)}",
            f"A row of the format {chosen.name} is {chosen.expected}.",
        )
    _say(rows, chosen, "detected" if format == "auto" else "given")
    return converted


def _say(rows: list[Row], chosen: Format, how: str) -> None:
    paths = sorted({re.sub(r"(:\d+|(\[[^\]]*\])+)$", "", source) for _, source in rows})
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    log.info("%s%s: %s rows, format %s (%s)", paths[0], more, f"{len(rows):,}", chosen.name, how)
    unused = {key for row, _ in rows for key, value in row.items() if value is not None}
    unused -= {*chosen.required, *chosen.optional}
    if unused:
        log.info("%s%s: keys that are not used: %s", paths[0], more, ", ".join(sorted(unused)))


def _keys(row: dict[str, Any]) -> str:
    return ", ".join(row) or "(none)"


def _convert_row(row: dict[str, Any], source: str, chosen: Format) -> Conversation | Text:
    missing = [key for key in chosen.required if row.get(key) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing; its keys are {_keys(row)}")
    converted = chosen.convert(row, source)
    if isinstance(converted, Conversation):
        _check(converted.messages)
    elif not converted.completion.strip():
        raise ValueError(f"{chosen.required[-1]} is empty")
    return converted


@_format(
    "messages",
    ("messages",),
    '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
)
def _messages(row: dict[str, Any], source: str) -> Conversation:
    return Conversation(_message_list(row["messages"], "messages"), source)


@_format(
    "prompt_completion",
    ("prompt", "completion"),
    '{"prompt": "...", "completion": "..."}, both strings or both lists of messages',
)
def _prompt_completion(row: dict[str, Any], source: str) -> Conversation | Text:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Text(prompt, completion, source)
    if isinstance(prompt, str) or isinstance(completion, str):
        raise ValueError("prompt and completion must be both strings or both lists of messages, not one of each")
    answer = _message_list(completion, "completion")
    if not any(message["role"] == "assistant" for message in answer):
        raise ValueError("completion holds no assistant message")
    given = tuple({**message, "train": False} for message in _message_list(prompt, "prompt"))
    return Conversation(given + answer, source)


@_format(
    "alpaca",
    ("instruction", "output"),
    '{"instruction": "...", "input": "... (optional)", "output": "..."}',
    optional=("input",),
)
def _alpaca(row: dict[str, Any], source: str) -> Conversation:
    for key in ("instruction", "input", "output"):
        if not isinstance(row.get(key) or "", str):
            raise ValueError(f"{key} must be a string, found {_short(row[key])}")
    question = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
    return Conversation(
        ({"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}), source
    )


@_format(
    "sharegpt",
    ("conversations",),
    '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
)
def _sharegpt(row: dict[str, Any], source: str) -> Conversation:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"conversations must be a list of objects, found {_short(turns)}")
    messages = []
    for i, turn in enumerate(turns):
        if "from" not in turn or "value" not in turn:
            hint = "; rows with role and content go under the key messages" if "role" in turn else ""
            raise ValueError(f"conversations[{i}] has the keys {_keys(turn)}, expected from and value{hint}")
        if not isinstance(turn["from"], str) or turn["from"] not in SHAREGPT_ROLES:
            raise ValueError(
                f"conversations[{i}].from is {_short(turn['from'])}, accepted are {', '.join(SHAREGPT_ROLES)}"
            )
        messages.append({"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]})
    return Conversation(tuple(messages), source)


@_format("text", ("text",), '{"text": "..."}')
def _text(row: dict[str, Any], source: str) -> Text:
    if not isinstance(row["text"], str):
        raise ValueError(f"text must be a string, found {_short(row['text'])}")
    return Text("", row["text"], source)


def _message_list(value: Any, key: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"{key} must be a list of messages, found {_short(value)}")
    for i, message in enumerate(value):
        if message.get("role") not in ROLES:
            raise ValueError(f"{key}[{i}].role is {_short(message.get('role'))}, accepted are {', '.join(ROLES)}")
    # Tables (parquet) fill the keys that a message does not have with null.
    return tuple({k: v for k, v in message.items() if v is not None} for message in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _check(messages: tuple[dict[str, Any], ...]) -> None:
    """Raises `ValueError` where the messages are no conversation that ends up in a training row."""
    for i, message in enumerate(messages):
        _check_message(i, message)
    _check_order([message["role"] for message in messages])


def _check_message(i: int, message: dict[str, Any]) -> None:
    role, content = message["role"], message.get("content")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise ValueError(f"message {i} ({role}): content must be a string, found {_short(content)}")
    if role == "assistant" and not (content or "").strip() and not message.get("tool_calls"):
        raise ValueError(f"message {i} (assistant): content is empty")
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) and _is_call(call) for call in calls):
        raise ValueError(f'message {i} ({role}): tool_calls must be a list of {{"function": {{"name": ...}}}}')
    train = message.get("train", False)
    if not isinstance(train, bool):
        raise ValueError(f"message {i} ({role}): train must be true or false, found {_short(train)}")
    if train and role != "assistant":
        raise ValueError(
            f'message {i} ({role}): "train": true is for assistant messages; data.loss_on: all trains every token'
        )
    if "weight" in message:
        raise ValueError(f'message {i} ({role}): weight is not a key; write "train": false for a message of weight 0')


def _is_call(call: dict[str, Any]) -> bool:
    function = call.get("function", call)
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _check_order(roles: list[str]) -> None:
    if not roles:
        raise ValueError("the conversation is empty")
    if "assistant" not in roles:
        raise ValueError("the conversation has no assistant message, so nothing to train on")
    if "system" in roles[1:]:
        raise ValueError(f"message {roles.index('system', 1)} is a system message; it may only come first")
    if next(role for role in roles if role != "system") != "user":
        raise ValueError("the conversation must begin with a user message (after an optional system message)")
    for i, (before, role) in enumerate(itertools.pairwise(roles), start=1):
        if before == role == "assistant":
            raise ValueError(f"messages {i - 1} and {i} are both assistant messages; join them into one")
        if role == "tool" and before not in ("assistant", "tool"):
            raise ValueError(
                f"message {i} is a tool message after a {before} message; it must follow the assistant's call"
            )
