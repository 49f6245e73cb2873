"""What a model is asked, and what the data answers: the rows of text generation and its metrics."""

from collections.abc import Iterable

from tunekit.data.messages import prepare_messages
from tunekit.data.rendering import PLAIN, Rendering
from tunekit.data.rows import AnyRow, Conversation, Preference, Prompt, Refused, Rejected, Text, Unpaired


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


def as_prompt(row: AnyRow) -> Prompt | Rejected:
    """What is asked in a row, with the answer that it has, if it has one.

    Of a conversation that is what stands before its last answer; of two answers the better one is taken.
    """
    if isinstance(row, Prompt):
        return row
    if isinstance(row, Preference):
        answer = row.chosen if isinstance(row.chosen, str) else str(row.chosen[-1].get("content") or "")
        return Prompt(row.prompt, row.source, row.tools, answer)
    if isinstance(row, Unpaired):
        return Prompt(row.prompt, row.source, row.tools)
    if isinstance(row, Text):
        if row.prompt:
            return Prompt(row.prompt, row.source, answer=row.completion)
        return Rejected(row.source, "it has no prompt: all of it is text", vars(row))
    answers = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    if not answers or answers[-1] == 0:
        return Rejected(row.source, "nothing is asked in it before an answer", vars(row))
    given = tuple({k: v for k, v in message.items() if k != "train"} for message in row.messages[: answers[-1]])
    return Prompt(given, row.source, row.tools, row.messages[answers[-1]].get("content"))
