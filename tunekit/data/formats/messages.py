"""Messages as chat templates take them, from the two ways of writing them: role and content, or from and value."""

import itertools
from typing import Any

from tunekit.data.formats.registry import Row
from tunekit.data.formats.tools import CALL, calls_in, read_call
from tunekit.data.messages import REASONING_KEYS
from tunekit.data.rows import Messages, Refused
from tunekit.data.sources.source import shown

ROLES = ("system", "user", "assistant", "tool")
# The words for roles elsewhere, in any case, and ours for them.
OTHER_ROLES = {
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
CALLS = ("function_call", "tool_call")
# Keys that tables fill with an empty value where a message has none.
FILLED = (*REASONING_KEYS, "tool_calls", "tool_call_id", "name")
# Keys of other tools that say whether a message is trained, beside OpenAI's `weight`.
TRAINED_KEYS = ("training", "loss")
LEAVE_OUT = "Correct the row, or take it out."
NO_TEXT = "Write the list itself and not its JSON text."


def read_messages(value: Any, key: str) -> Messages:
    """The messages under a key of a row. Raises `Refused` with the message that is none."""
    if not isinstance(value, list | tuple):
        is_json = isinstance(value, str) and value.lstrip().startswith("[")
        raise Refused(f"{key} must be a list of messages, found {shown(value)}", NO_TEXT if is_json else "")
    messages = []
    for i, message in enumerate(value):
        try:
            messages.append(read_message(message))
        except Refused as error:
            role = message.get("role", message.get("from")) if isinstance(message, dict) else None
            who = f" ({role})" if isinstance(role, str) and role.lower() in (*ROLES, *OTHER_ROLES) else ""
            raise Refused(f"{key}[{i}]{who}: {error.reason}", error.fix) from error
    return tuple(messages)


def read_chat(row: Row, key: str) -> Messages:
    """The messages under a key of a row, with its system prompt. Raises `Refused`."""
    return with_system(row, read_messages(row[key], key))


def with_system(row: Row, messages: Messages) -> Messages:
    """The messages after the row's `system` prompt, if it has one. Raises `Refused`."""
    system = row.get("system")
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise Refused(f"system must be a string, found {shown(system)}")
    return ({"role": "system", "content": system}, *messages)


def read_message(message: Any) -> dict[str, Any]:
    """One message without keys that have no value, as tables fill those that others have. Raises `Refused`."""
    if not isinstance(message, dict):
        raise Refused(f"a message must be an object, found {shown(message)}")
    read = _in_our_words(message)
    if "function_call" in read:
        raise Refused("function_call is not a key", f'Write "tool_calls": [{CALL}] for it.')
    if "tool_calls" in read:
        _normalise_calls(read)
    if isinstance(read.get("content"), list):
        read["content"] = _join(read["content"])
    _check_content(read)
    _check_train(read)
    return read


def check_conversation(messages: Messages) -> Messages:
    """Raises `Refused` where the messages are no conversation that ends up in a training row."""
    if not messages:
        raise Refused("the conversation is empty", LEAVE_OUT)
    if not any(message["role"] == "assistant" for message in messages):
        raise Refused("the conversation has no assistant message, so nothing to train on", LEAVE_OUT)
    check_order(messages)
    return messages


def check_prompt(messages: Messages, key: str) -> Messages:
    """Raises `Refused` where nothing in the messages asks for an answer."""
    if not any(message["role"] == "user" for message in messages):
        raise Refused(f"{key} has no user message")
    if messages[-1]["role"] not in ("user", "tool"):
        raise Refused(f"{key} ends with a message of the {messages[-1]['role']}, so that there is nothing to answer")
    check_order(messages)
    return messages


def check_order(messages: Messages) -> None:
    """Raises `Refused` where a role stands where a chat has none of its kind."""
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise Refused(f"message {roles.index('system', 1)} is a system message; it may only come first", LEAVE_OUT)
    if next(role for role in roles if role != "system") != "user":
        raise Refused(
            "the conversation must begin with a user message (after an optional system message)",
            "Take out what comes before the first user message.",
        )
    for i, (before, role) in enumerate(itertools.pairwise(roles), start=1):
        if before == role == "assistant":
            raise Refused(f"messages {i - 1} and {i} are both assistant messages; join them into one", LEAVE_OUT)
        if role == "tool" and before not in ("assistant", "tool"):
            raise Refused(
                f"message {i} is a tool message after a {before} message; it must follow the assistant's call",
                LEAVE_OUT,
            )


def _in_our_words(message: dict[str, Any]) -> dict[str, Any]:
    """The message under `role` and `content`, without keys that have no value. Raises `Refused`."""
    key, text = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    if key not in message:
        raise Refused(f"there is no role: {shown(message)}")
    name = message[key]
    word = name.lower() if isinstance(name, str) else ""
    role = OTHER_ROLES.get(word, word)
    if role not in ROLES:
        raise Refused(f"{key} is {shown(name)}, accepted are {', '.join((*ROLES, *OTHER_ROLES))}")
    if text not in message and (key == "from" or "value" in message):
        raise Refused(f"there is {key} and no {text}: {shown(message)}")
    read = {each: value for each, value in message.items() if value is not None and each not in (key, text)}
    read = {each: value for each, value in read.items() if each not in FILLED or value not in ("", [])}
    content = message.get(text)
    calls = calls_in(content) if word in CALLS else None
    if calls:
        return {**read, "role": role, "tool_calls": calls}
    # What is no call stays the text that was written.
    return {**read, "role": role} | ({} if content is None else {"content": content})


def _normalise_calls(message: dict[str, Any]) -> None:
    calls = message["tool_calls"]
    if not isinstance(calls, list):
        raise Refused(f"tool_calls must be a list, found {shown(calls)}")
    if message["role"] != "assistant":
        raise Refused("only an assistant message may have tool_calls", LEAVE_OUT)
    message["tool_calls"] = [read_call(call) for call in calls]


def _join(parts: list[Any]) -> str:
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise Refused(
                f"content[{i}] is {f'of type {shown(kind)}' if kind else shown(part)}: content must be a string or "
                "parts that are text; images and sound are not trained on",
                'A part is {"type": "text", "text": "..."}.',
            )
        if not isinstance(part.get("text"), str):
            raise Refused(f"content[{i}].text must be a string, found {shown(part.get('text'))}")
    return "".join(part["text"] for part in parts)


def _check_content(message: dict[str, Any]) -> None:
    content, is_assistant, calls = message.get("content"), message["role"] == "assistant", "tool_calls" in message
    if content is None and not calls:
        raise Refused("content is missing or null")
    if not isinstance(content, str | None):
        raise Refused(f"content must be a string, found {shown(content)}")
    if is_assistant and not calls and not (content or "").strip():
        raise Refused("content is empty", LEAVE_OUT)
    for key in REASONING_KEYS:
        if key in message and not (is_assistant and isinstance(message[key], str)):
            raise Refused(f"{key} must be a string, of an assistant message, found {shown(message[key])}")


def _check_train(message: dict[str, Any]) -> None:
    if "weight" in message:
        weight = message.pop("weight")
        if weight not in (0, 1) or message.setdefault("train", bool(weight)) != bool(weight):
            raise Refused(f"weight must be 0 or 1, and as train if there is one, found {shown(weight)}")
    train = message.get("train", False)
    if not isinstance(train, bool):
        raise Refused(f"train must be true or false, found {shown(train)}")
    if train and message["role"] != "assistant":
        raise Refused('"train": true is for assistant messages; data.loss_on: all trains every token', LEAVE_OUT)
    for key in TRAINED_KEYS:
        if key in message:
            raise Refused(
                f'{key} is not a key; write "train": false for a message that is not trained',
                f'Replace "{key}" by "train": true or false.',
            )
