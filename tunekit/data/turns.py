"""The turns of a conversation in the text that the tokenizer's chat template makes of it, by rendering prefixes.

    whole            user: Hi<|im_end|> assistant: Hello<|im_end|> user: Bye<|im_end|> ...
    before turn i    user: Hi<|im_end|> assistant:                     messages[:i] and the generation prompt
    through turn i   user: Hi<|im_end|> assistant: Hello<|im_end|>     messages[:i+1]

Both must be string prefixes of the whole, or the row is refused: nothing is searched for in the text.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2
from transformers import PreTrainedTokenizerBase

from tunekit.data.rows import Conversation
from tunekit.errors import DataError

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# What a template may raise: its own raise_exception, or Python's errors from an expression on a message.
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)


@dataclass(frozen=True)
class Chat:
    """A conversation as the template gets it, the turns whose spans are `needed`, and whether these are `all_turns`."""

    messages: list[dict[str, Any]]
    needed: list[int]
    all_turns: bool
    source: str


@dataclass(frozen=True)
class Turn:
    """The characters `[start, end)` of the rendered conversation that come with the assistant message `index`."""

    index: int
    start: int
    end: int


def choose_turns(row: Conversation, loss_on: str, system: str | None) -> Chat:
    """The conversation with `system` where it has no system message, and the turns to find for `loss_on`.

    These are the turns to train, and for `all` those that are not to be trained.
    """
    given = list(row.messages)
    if system is not None and given[0]["role"] != "system":
        given.insert(0, {"role": "system", "content": system})
    turns = [i for i, message in enumerate(given) if message["role"] == "assistant"]
    needed = [i for i in turns if given[i].get("train", True)]
    if loss_on == "all":
        needed = [i for i in turns if i not in needed]
    elif loss_on == "last" or (loss_on == "completion" and all(message.get("train", True) for message in given)):
        needed = [i for i in needed if i == turns[-1]]
    messages = [{key: value for key, value in message.items() if key != "train"} for message in given]
    return Chat(messages, needed, needed == turns, row.source)


def chat_template(tokenizer: PreTrainedTokenizerBase, source: str) -> str:
    """The tokenizer's template. Raises `DataError` where it has none."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise DataError(
            f"{source}: a conversation needs a chat template, and this tokenizer has none (a base model?)",
            "Set data.chat_template: path.jinja, or write the rows as prompt and completion strings.",
        ) from error


def apply_template(
    tokenizer: PreTrainedTokenizerBase, chats: list[tuple[list[dict[str, Any]], str]], *, add_generation_prompt: bool
) -> list[str]:
    """The renderings of (messages, source). Raises `DataError` with the source that the template refuses."""
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    if not chats:
        return []
    try:
        return list(tokenizer.apply_chat_template([messages for messages, _ in chats], **options))
    except TEMPLATE_ERRORS:
        # One call for all chats is the fast one; a call each tells which chat it was.
        for messages, source in chats:
            _apply_to_one(tokenizer, messages, source, options)
        raise


def _apply_to_one(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], source: str, options: dict[str, Any]
) -> None:
    try:
        tokenizer.apply_chat_template(messages, **options)
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{source}: the chat template refuses the messages ({roles}): {error}",
            "Change the row (or data.system, if that adds the system message), or set data.chat_template: path.jinja.",
        ) from error


def find_turns(chats: list[Chat], wholes: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[Turn]]:
    """The needed turns of each chat in its rendering. Raises `DataError` where a prefix is rendered differently."""
    needed = [(c, i) for c, chat in enumerate(chats) for i in chat.needed]
    inner = [(c, i) for c, i in needed if i + 1 < len(chats[c].messages)]
    before = [(chats[c].messages[:i], chats[c].source) for c, i in needed]
    through = [(chats[c].messages[: i + 1], chats[c].source) for c, i in inner]
    heads = apply_template(tokenizer, before, add_generation_prompt=True)
    tails = dict(zip(inner, apply_template(tokenizer, through, add_generation_prompt=False), strict=True))
    turns: list[list[Turn]] = [[] for _ in chats]
    for (c, i), head in zip(needed, heads, strict=True):
        tail = tails.get((c, i), wholes[c])
        for prefix in (head, tail):
            if not wholes[c].startswith(prefix):
                _refuse_rewriting(chats[c], i, prefix, wholes[c])
        _check_kept(chats[c], i, wholes[c][len(head) : len(tail)])
        turns[c].append(Turn(i, len(head), len(tail)))
    return turns


def _refuse_rewriting(chat: Chat, i: int, prefix: str, whole: str) -> NoReturn:
    differing = (k for k, (a, b) in enumerate(zip(prefix, whole, strict=False)) if a != b)
    at = next(differing, min(len(prefix), len(whole)))
    near = slice(max(0, at - 30), at + 40)
    fix = "Set data.chat_template: path.jinja, a template that renders a turn alike whatever follows it"
    if any(message["role"] == "assistant" for message in chat.messages[i + 1 :]):
        fix += ", or data.loss_on: last (some templates strip the reasoning from all turns but the last)"
    raise DataError(
        f"{chat.source}: message {i} (assistant): the chat template renders the conversation up to this turn "
        f"differently alone and in the whole, from character {at}:\n"
        f"  alone: {prefix[near]!r}\n  whole: {whole[near]!r}",
        f"{fix}.",
    )


def _check_kept(chat: Chat, i: int, rendered: str) -> None:
    """Raises `DataError` where the template leaves out what the turn says; it may move whitespace."""
    message = chat.messages[i]
    parts = [(key, message[key]) for key in ("content", *REASONING_KEYS) if isinstance(message.get(key), str)]
    parts += [("tool_calls", str(call.get("function", call)["name"])) for call in message.get("tool_calls", [])]
    for key, part in parts:
        if part not in rendered and "".join(part.split()) not in "".join(rendered.split()):
            raise DataError(
                f"{chat.source}: message {i} (assistant): the chat template does not render its {key} as written:\n"
                f"  {key}: {part[:80]!r}\n  rendered: {rendered[:80]!r}",
                f"Take {key} out of the row, or set data.chat_template: path.jinja, a template that renders it.",
            )
