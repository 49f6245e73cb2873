"""The formats, one function each, in the order in which detection asks for them.

What has two answers or a verdict goes before what could be read from the same keys without; `text` and `prompt`, which
many rows have beside something else, go last, and leave rows alone whose other columns look like an answer.
"""

import itertools
import sys
from typing import Any, cast

from tunekit.data.formats.answers import (
    EMPTY,
    check_answer,
    read_answer,
    read_text,
    read_transcript,
    read_words,
    split_messages,
    split_texts,
)
from tunekit.data.formats.detect import ANSWERS, LABELS, answer_keys, as_yaml, question_key
from tunekit.data.formats.messages import check_conversation, check_prompt, read_chat, read_messages, with_system
from tunekit.data.formats.registry import FORMATS, Row, register
from tunekit.data.formats.tools import read_tools
from tunekit.data.rows import Conversation, Messages, Preference, Prompt, Refused, Text, Unpaired
from tunekit.data.sources.source import shown

__all__ = ["FORMATS"]

EQUAL = "Take the row out: it prefers nothing."


def _is_transcript(row: Row) -> bool:
    values = (row.get("chosen"), row.get("rejected"))
    return all(value is None or (isinstance(value, str) and value.startswith("\n\nHuman:")) for value in values)


def _is_verdict(row: Row) -> bool:
    """Whether `label` is true or false, or a way of writing these that the row is then rejected for."""
    label = row.get("label")
    if isinstance(label, str):
        return label.lower() in ("true", "false")
    return label is None or (isinstance(label, int) and label in (0, 1))


@register(
    "hh_rlhf",
    ("chosen", "rejected"),
    claims=_is_transcript,
    example='{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "\\n\\nHuman: ...\\n\\nAssistant: ..."}',
)
def _hh_rlhf(row: Row, source: str) -> Preference:
    chosen = read_transcript(read_text(row, "chosen"), "chosen")
    rejected = read_transcript(read_text(row, "rejected"), "rejected")
    if chosen == rejected:
        raise Refused("chosen and rejected are equal", EQUAL)
    if chosen[:-1] != rejected[:-1]:
        raise Refused("chosen and rejected differ before their last turn, so that they do not answer one prompt")
    return Preference(chosen[:-1], chosen[-1:], rejected[-1:], source)


@register(
    "preference",
    ("chosen", "rejected"),
    optional=("prompt", "messages", "conversations", "system", "tools", "margin"),
    example='{"prompt": ..., "chosen": ..., "rejected": ...}, all strings or all messages; or without a prompt, '
    "chosen and rejected beginning with it",
)
def _preference(row: Row, source: str) -> Preference:
    chosen, rejected = (read_answer(row, key) for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise Refused("chosen and rejected are equal", EQUAL)
    margin = _margin(row.get("margin"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        _refuse_beside_text(row)
        return Preference(*split_texts(row, chosen, rejected), source, margin=margin)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise Refused("chosen and rejected must be both strings or both messages, not one of each")
    return Preference(*split_messages(row, chosen, rejected), source, read_tools(row.get("tools")), margin)


@register(
    "unpaired",
    ("label", "prompt", "completion"),
    ("label", "messages"),
    ("label", "conversations"),
    optional=("system", "tools"),
    claims=_is_verdict,
    example='{"prompt": "...", "completion": "...", "label": true}, or messages and label',
)
def _unpaired(row: Row, source: str) -> Unpaired:
    label = row["label"]
    if not isinstance(label, bool):
        raise Refused(
            f"label must be true or false, found {shown(label)}",
            "Write true or false without quotes. If label is no verdict, set format, such as format: messages.",
        )
    if row.get("prompt") is not None and row.get("completion") is not None:
        prompt, completion = _prompt_and_completion(row)
    else:
        key = "messages" if row.get("messages") is not None else "conversations"
        messages = read_chat(row, key)
        prompt, completion = messages[:-1], messages[-1:]
    if not isinstance(prompt, str):
        check_answer(check_prompt(prompt, "what is before the answer"), cast(Messages, completion), "the answer")
    return Unpaired(prompt, completion, label, source, read_tools(row.get("tools")))


@register(
    "messages",
    ("messages",),
    optional=("system", "tools"),
    example='{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
)
def _messages(row: Row, source: str) -> Conversation:
    return Conversation(check_conversation(read_chat(row, "messages")), source, read_tools(row.get("tools")))


@register(
    "prompt_completion",
    ("prompt", "completion"),
    optional=("system", "tools"),
    example='{"prompt": "...", "completion": "..."}, both strings or both lists of messages',
)
def _prompt_completion(row: Row, source: str) -> Conversation | Text:
    prompt, completion = _prompt_and_completion(row)
    if isinstance(prompt, str):
        return Text(prompt, cast(str, completion), source)
    if not any(message["role"] == "assistant" for message in cast(Messages, completion)):
        raise Refused("completion holds no assistant message")
    given = tuple({**message, "train": False} for message in prompt)
    return Conversation(check_conversation((*given, *completion)), source, read_tools(row.get("tools")))


@register(
    "alpaca",
    ("instruction", "output"),
    optional=("input", "system", "history"),
    example='{"instruction": "...", "input": "... (optional)", "output": "..."}, also system and history',
)
def _alpaca(row: Row, source: str) -> Conversation:
    instruction, output = read_text(row, "instruction"), read_text(row, "output")
    more = "" if row.get("input") is None else read_text(row, "input")
    question = "\n\n".join(part for part in (instruction, more) if part)
    for key, value in (("instruction", question), ("output", output)):
        if not value.strip():
            raise Refused(f"{key} is empty", EMPTY)
    history = row.get("history") or []
    if not isinstance(history, list) or not all(_is_exchange(each) for each in history):
        raise Refused(f"history must be a list of [question, answer], found {shown(history)}")
    said = [text for exchange in history for text in exchange] + [question, output]
    messages = [{"role": role, "content": text} for role, text in zip(itertools.cycle(("user", "assistant")), said)]
    return Conversation(check_conversation(with_system(row, tuple(messages))), source)


@register(
    "sharegpt",
    ("conversations",),
    optional=("system", "tools"),
    example='{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
)
def _sharegpt(row: Row, source: str) -> Conversation:
    return Conversation(check_conversation(read_chat(row, "conversations")), source, read_tools(row.get("tools")))


@register("text", ("text",), claims=lambda row: not answer_keys(row, (*ANSWERS, *LABELS)), example='{"text": "..."}')
def _text(row: Row, source: str) -> Text:
    return Text("", read_words(row, "text"), source)


@register(
    "prompt",
    ("prompt",),
    optional=("answer", "system", "tools"),
    claims=lambda row: not answer_keys(row, but=("answer",)),
    example='{"prompt": "..."}, a string or a list of messages; also answer, a string',
)
def _prompt(row: Row, source: str) -> Prompt:
    answer = None if row.get("answer") is None else read_text(row, "answer")
    if not isinstance(row["prompt"], list | tuple):
        _refuse_beside_text(row)
        return Prompt(read_words(row, "prompt"), source, answer=answer)
    prompt = check_prompt(read_chat(row, "prompt"), "prompt")
    return Prompt(prompt, source, read_tools(row.get("tools")), answer)


def _prompt_and_completion(row: Row) -> tuple[str | Messages, str | Messages]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        _refuse_beside_text(row)
        return prompt, read_words(row, "completion")
    if isinstance(prompt, list | tuple) and isinstance(completion, list | tuple):
        return read_chat(row, "prompt"), read_messages(completion, "completion")
    raise Refused(
        "prompt and completion must be both strings or both lists of messages, "
        f"found {shown(prompt)} and {shown(completion)}"
    )


def _refuse_beside_text(row: Row) -> None:
    """What a chat template would render has no place in raw text."""
    if row.get("tools"):
        raise Refused("tools needs messages, and the texts of the row are raw text", "Write the texts as messages.")
    if row.get("system"):
        asked = "prompt" if row.get("prompt") is not None else question_key(row) or "prompt"
        raise Refused(
            "system needs messages, and the texts of the row are raw text",
            "Write messages, or put it into the prompt: beside the path, "
            f"{as_yaml({'prompt': f'{{system}} {{{asked}}}'})} ({{{asked}}}: the column that has the prompt).",
        )


def _is_exchange(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _margin(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise Refused(f"margin must be a finite number, found {shown(value)}")
    return float(value)
