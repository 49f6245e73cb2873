"""Whether a chat template renders what messages say: nothing of a row may get lost without a word.

A template may move white space, and write text as JSON; it may not leave text out.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator

from tunekit.data.messages import (
    CLOSE,
    REASONING_KEYS,
    Message,
    Prepared,
    functions,
    has_reasoning,
    split_reasoning,
    strings,
    without_reasoning,
)
from tunekit.data.notes import REASONING_LOST
from tunekit.data.rows import Refused

OTHER_TEMPLATE = "set data.chat_template: path.jinja, a template that"
REASONING, CONTENT, CALLS = "reasoning", "content", "tool_calls"


def check_given(prepared: Prepared, rendered: str, left_out: Collection[int]) -> None:
    """Raises `Refused` where the template leaves out what a message says that is not the assistant's.

    `left_out` are the messages known to be, though their words may stand elsewhere in the rendering.
    """
    for i, message in enumerate(prepared.messages):
        content = message.get("content", "")
        lost = not _is_in(content, rendered) or (i in left_out and content.strip())
        if message["role"] != "assistant" and lost:
            raise Refused(
                f"{prepared.place(i)}: the chat template leaves out what it says, or part of it: {content[:80]!r}",
                f"Take it out of the row, or {OTHER_TEMPLATE} renders such messages.",
            )


def parts_said_twice(message: Message) -> Iterator[tuple[str, Message]]:
    """The parts whose words may stand in another part of the answer too, and the answer without each.

    That their words are in the rendering does not show that they are: the rendering without them must be another one.
    """
    if has_reasoning(message):
        yield REASONING, without_reasoning(message)
    if message.get("tool_calls") and message.get("content", "").strip():
        yield CONTENT, {**message, "content": ""}


def check_answer(prepared: Prepared, i: int, rendered: str, reasoning: str, left_out: Collection[str]) -> None:
    """Raises `Refused` where the template leaves out what the assistant's message `i` says.

    `left_out` are the parts known to be. Under `reasoning: template` it may leave out the reasoning, which is noted.
    """
    place, said = prepared.place(i), list(_said(prepared.messages[i], rendered))
    lost = [(part, text) for part, text in said if part in left_out or not _is_in(text, rendered)]
    if reasoning == "template" and (REASONING in left_out or any(part == REASONING for part, _ in lost)):
        prepared.notes.append(REASONING_LOST)
        lost = [(part, text) for part, text in lost if part != REASONING]
    names = Counter(function["name"] for function in functions(prepared.messages[i]))
    if any(rendered.count(name) < count for name, count in names.items()):
        raise Refused(
            f"{place}: the chat template does not render all of its {names.total()} tool calls",
            f"Write one call in each message, or {OTHER_TEMPLATE} renders them.",
        )
    for part, text in lost:
        fix = f"Take {part} out of the message, or {OTHER_TEMPLATE} renders it."
        if part == REASONING:
            fix = (
                "Set data.reasoning: template to train what the template leaves, data.reasoning: drop to take the "
                f"reasoning out of the data, or {OTHER_TEMPLATE} renders it."
            )
        raise Refused(
            f"{place}: the chat template does not render its {part} as written:\n"
            f"  {part}: {text[:80]!r}\n  rendered: {rendered[:80]!r}",
            fix,
        )
    content = prepared.messages[i].get("content", "")
    if split_reasoning(content)[0] and rendered.count(CLOSE) > content.count(CLOSE):
        raise Refused(
            f"{place}: the chat template writes a block of reasoning of its own before the one in content",
            'Write the reasoning under "reasoning_content" and not in content, or set data.reasoning: drop.',
        )


def _said(message: Message, rendered: str) -> Iterator[tuple[str, str]]:
    """Each part of an answer and its text."""
    for key in REASONING_KEYS:
        if key in message:
            yield REASONING, message[key]
    content = message.get("content", "")
    thought, answer = split_reasoning(content)
    # A template may put other tags around the reasoning, or write one of them in the generation prompt.
    if thought:
        yield REASONING, thought
    yield CONTENT, content if not thought or _is_in(content, rendered) else answer
    for function in functions(message):
        for text in (function["name"], *strings(function.get("arguments"))):
            yield CALLS, text


def _is_in(text: str, rendered: str) -> bool:
    text = text.strip()
    if text in rendered:
        return True
    forms = [text, *(json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))]
    squeezed = _squeeze(rendered)
    return any(_squeeze(form) in squeezed for form in forms)


def _squeeze(text: str) -> str:
    return "".join(text.split())
