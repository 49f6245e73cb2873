"""Two answers to one prompt, or one that is judged: where the prompt ends and the answers begin."""

import itertools
import re

from tunekit.data.formats.detect import as_yaml, question_key
from tunekit.data.formats.messages import check_order, check_prompt, read_messages, with_system
from tunekit.data.formats.registry import Row
from tunekit.data.rows import Messages, Refused
from tunekit.data.sources.source import shown

MARK = re.compile(r"\n\n(Human|Assistant):")
EMPTY = "Write what is missing, or take the row out."


def read_text(row: Row, key: str) -> str:
    """Raises `Refused` where there is something other than text."""
    value = row[key]
    if not isinstance(value, str):
        raise Refused(f"{key} must be a string, found {shown(value)}")
    return value


def read_words(row: Row, key: str) -> str:
    """A text that says something."""
    value = read_text(row, key)
    if not value.strip():
        raise Refused(f"{key} is empty", EMPTY)
    return value


def read_answer(row: Row, key: str) -> str | Messages:
    """A text, a list of messages, or a single one."""
    value = row[key]
    if isinstance(value, str):
        return read_words(row, key)
    return read_messages([value] if isinstance(value, dict) else value, key)


def split_texts(row: Row, chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt and answers that are texts: the prompt is under `prompt`, or the words that both begin with."""
    if row.get("prompt") is not None:
        return read_text(row, "prompt"), chosen, rejected
    for key in ("messages", "conversations"):
        if row.get(key) is not None:
            raise Refused(f"{key} is a chat, and chosen and rejected are raw text", "Write these as messages.")
    differing = (i for i, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other)
    cut = next(differing, min(len(chosen), len(rejected)))
    asked = question_key(row, but=("chosen", "rejected"))
    if asked is not None and str(row[asked]) not in chosen[:cut]:
        prompt = asked if row.get("system") is None else f"{{system}} {{{asked}}}"
        raise Refused(
            f"there is no prompt, and the column {asked} looks like one",
            f"Write beside the path: {as_yaml({'prompt': prompt})}",
        )
    if cut and not chosen[cut - 1].isspace() and (chosen[cut : cut + 1] + rejected[cut : cut + 1]).strip():
        cut -= len(chosen[:cut].rsplit(None, 1)[-1])  # no token of an answer is to begin inside the prompt's last word
    if cut and chosen[cut - 1] == " ":  # the space belongs to the first word of an answer
        cut -= 1
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer[cut:].strip():
            raise Refused(f"{key} is empty after what both answers begin with, which is taken for the prompt", EMPTY)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def split_messages(row: Row, chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """Prompt and answers that are messages: the prompt is under a key of its own, or what both begin with."""
    key = next((key for key in ("prompt", "messages", "conversations") if row.get(key) is not None), None)
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = [message for message, _ in pairs]
    if key is None or (key == "prompt" and isinstance(row[key], str)):
        prompt = with_system(row, tuple(shared))
        _refuse_other_prompt(row.get("prompt"), prompt)
        chosen, rejected = chosen[len(shared) :], rejected[len(shared) :]
    else:
        given = read_messages(row[key], key)
        prompt = with_system(row, given)
        if tuple(shared[: len(given)]) == given:  # the answers repeat it
            chosen, rejected = chosen[len(given) :], rejected[len(given) :]
    if not prompt:
        raise Refused("chosen and rejected share no message, and there is no prompt")
    check_prompt(prompt, key or "what chosen and rejected share")
    return prompt, check_answer(prompt, chosen, "chosen"), check_answer(prompt, rejected, "rejected")


def check_answer(prompt: Messages, answer: Messages, key: str) -> Messages:
    """Raises `Refused` unless it is one turn of the assistant, with the calls and results of tools in it."""
    roles = [message["role"] for message in answer]
    if not roles:
        raise Refused(f"{key} is empty")
    if roles[0] != "assistant" or roles[-1] != "assistant" or not set(roles) <= {"assistant", "tool"}:
        raise Refused(
            f"{key} must be one answer of the assistant (tool calls and their results included) after the prompt, "
            f"found the roles {', '.join(roles)}"
        )
    check_order(prompt + answer)
    return answer


def read_transcript(text: str, key: str) -> Messages:
    """The messages of "\\n\\nHuman: ... \\n\\nAssistant: ...". Raises `Refused` where it does not end in an answer."""
    head, *parts = MARK.split(text)
    turns = [(name, said.strip()) for name, said in zip(parts[::2], parts[1::2], strict=True)]
    if head.strip() or not turns or turns[0][0] != "Human":
        raise Refused(f"{key} must begin with \\n\\nHuman:, found {shown(text)}")
    for i, (name, said) in enumerate(turns):
        if not said:
            raise Refused(f"{key}: turn {i} ({name}) is empty", EMPTY)
        if i and turns[i - 1][0] == name:
            raise Refused(f"{key}: turns {i - 1} and {i} are both by {name}")
    if turns[-1][0] != "Assistant":
        raise Refused(f"{key} ends with a turn of Human, so that it holds no answer")
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple({"role": roles[name], "content": said} for name, said in turns)


def _refuse_other_prompt(prompt: str | None, shared: Messages) -> None:
    """A prompt that is a text may stand beside answers that repeat it as their first messages, and only then."""
    if prompt is not None and (not shared or (shared[-1].get("content") or "").strip() != prompt.strip()):
        raise Refused(
            f"prompt is a string, chosen and rejected are messages, and these do not begin with it: {shown(prompt)}",
            'Write the prompt as messages: [{"role": "user", "content": "..."}].',
        )
