"""What a model is asked, and what the data answers: the rows of text generation and its metrics."""

from collections.abc import Iterable

from tunekit.data.messages import prepare_messages
from tunekit.data.rendering import PLAIN, Rendering
from tunekit.data.rows import Conversation, Prompt, Refused, Text


def last_turn(prompt: Prompt) -> str:
    """What a person would show of the prompt."""
    return prompt.prompt if isinstance(prompt.prompt, str) else str(prompt.prompt[-1].get("content", ""))


def prompts_of(rows: Iterable[Conversation | Text], rendering: Rendering = PLAIN) -> list[Prompt]:
    """The prompt and answer of each row that has both, its messages as training has them (see `render_all`).

    `text` rows, trained whole, have no prompt and are left out; so are rows of which nothing is left.
    """
    prompts = []
    for row in rows:
        if isinstance(row, Text):
            if row.prompt:
                prompts.append(Prompt(row.prompt, row.source, answer=row.completion))
            continue
        try:
            prepared = prepare_messages(row.messages, rendering)
        except Refused:
            continue
        answers = [i for i, message in enumerate(prepared.messages) if message["role"] == "assistant"]
        if not answers or answers[-1] == 0:
            continue
        last = answers[-1]
        if answer := prepared.messages[last].get("content"):
            prompts.append(Prompt(tuple(prepared.messages[:last]), row.source, row.tools, answer))
    return prompts
