"""Rows of preference data and prompts as token ids: what is compared, labelled or asked.

An answer is trained with its terminator, its prompt never; both come from one tokenisation of prompt and answer.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunekit.data.encode import Encoded, check_fast, encode
from tunekit.data.kept import check_given
from tunekit.data.messages import prepare_messages
from tunekit.data.render import reject, render_all
from tunekit.data.rendering import PLAIN, Rendering
from tunekit.data.rows import (
    AnyRow,
    Conversation,
    Labelled,
    Messages,
    Pair,
    Preference,
    Prompt,
    Refused,
    Rejected,
    Text,
    Tokens,
    Unpaired,
)
from tunekit.data.template import ChatTemplate


def render_pairs(
    rows: Sequence[Preference],
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering = PLAIN,
    notes: Counter[str] | None = None,
) -> list[Pair | Rejected]:
    """Each row as a `Pair` or `Rejected`, in order; raises as `render_all` does."""
    answers = _render_answers(rows, ("chosen", "rejected"), tokenizer, rendering, notes)
    pairs: list[Pair | Rejected] = []
    for row, chosen, rejected in zip(rows, answers[::2], answers[1::2], strict=True):
        try:
            pairs.append(_pair(_only_one("chosen", chosen), _only_one("rejected", rejected)))
        except Refused as refused:
            pairs.append(reject(row, refused))
    return pairs


def render_unpaired(
    rows: Sequence[Unpaired],
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering = PLAIN,
    notes: Counter[str] | None = None,
) -> list[Labelled | Rejected]:
    """Each row as `Labelled` or `Rejected`, in order; raises as `render_all` does."""
    labelled: list[Labelled | Rejected] = []
    for row, answer in zip(rows, _render_answers(rows, ("completion",), tokenizer, rendering, notes), strict=True):
        try:
            labelled.append(Labelled(_only_one("completion", answer), row.label))
        except Refused as refused:
            labelled.append(reject(row, refused))
    return labelled


def render_prompts(
    rows: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN
) -> list[Tokens | Rejected]:
    """What a model is asked: the ids of each row up to where its answer begins, none trained, or `Rejected`.

    Raises `DataError` as `render_all` does.
    """
    check_fast(tokenizer)
    from_texts = encode(tokenizer, [row.prompt for row in rows if isinstance(row.prompt, str)], add_special_tokens=True)
    from_chats = _ask_chats([row for row in rows if not isinstance(row.prompt, str)], tokenizer, rendering)
    rendered: list[Tokens | Rejected] = []
    for row in rows:
        result = next(from_texts if isinstance(row.prompt, str) else from_chats)
        rendered.append(reject(row, result) if isinstance(result, Refused) else _asked(row, result, tokenizer))
    return rendered


def _render_answers(
    rows: Sequence[Preference] | Sequence[Unpaired],
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering,
    notes: Counter[str] | None,
) -> list[list[Tokens] | Rejected]:
    """The answers of each row under these names, in turn, each after its prompt and alone trained."""
    answered = [_answered(row, getattr(row, name)) for row in rows for name in names]
    return render_all(answered, tokenizer, replace(rendering, loss_on="completion"), notes)


def best_answer(row: AnyRow) -> Conversation | Text | None:
    """The prompt of a row with the answer that is wanted, None where there is none."""
    if isinstance(row, Conversation | Text):
        return row
    if isinstance(row, Preference):
        return _answered(row, row.chosen)
    return _answered(row, row.completion) if isinstance(row, Unpaired) and row.label else None


def _answered(row: Preference | Unpaired, answer: str | Messages) -> Conversation | Text:
    if isinstance(row.prompt, str) and isinstance(answer, str):
        return Text(row.prompt, answer, row.source)
    assert not isinstance(row.prompt, str) and not isinstance(answer, str)
    given = tuple({**message, "train": False} for message in row.prompt)
    return Conversation((*given, *answer), row.source, row.tools)


def _only_one(name: str, rendered: list[Tokens] | Rejected) -> Tokens:
    """The answer as one row of tokens. Raises `Refused` where it is none, several, or nothing of it is trained."""
    if isinstance(rendered, Rejected):
        raise Refused(f"{name}: {rendered.reason}", rendered.fix)
    if len(rendered) > 1:
        raise Refused(
            f"{name} has several assistant turns, and the chat template renders the earlier ones differently once "
            "they are history: they do not fit into one row",
            "Give the last turn as the answer and the others as the prompt, or set data.reasoning: template.",
        )
    if not rendered[0].trained.any():
        raise Refused(f"{name}: nothing of the answer can be trained", 'Take "train": false out of it, or the row out.')
    return rendered[0]


def _pair(chosen: Tokens, rejected: Tokens) -> Pair:
    if np.array_equal(chosen.ids, rejected.ids):
        raise Refused("chosen and rejected are the same tokens", "Take the row out: it prefers nothing.")
    return Pair(chosen, rejected, shared_prompt(chosen, rejected))


def shared_prompt(chosen: Tokens, rejected: Tokens) -> int:
    """How many tokens at the beginning are the same in both answers and trained in neither."""
    length = min(int(tokens.trained.argmax()) for tokens in (chosen, rejected))
    differs = np.flatnonzero(chosen.ids[:length] != rejected.ids[:length])
    return int(differs[0]) if len(differs) else length


def _ask_chats(
    rows: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, rendering: Rendering
) -> Iterator[Encoded | Refused]:
    if not rows:
        return
    template = ChatTemplate(tokenizer, rows[0].source, rendering.date)
    asked: list[str | Refused] = []
    for row in rows:
        try:
            asked.append(_ask(row, template, rendering))
        except Refused as refused:
            asked.append(refused)
    texts = encode(tokenizer, (text for text in asked if isinstance(text, str)), add_special_tokens=False)
    for text in asked:
        yield next(texts) if isinstance(text, str) else text


def _ask(row: Prompt, template: ChatTemplate, rendering: Rendering) -> str:
    assert not isinstance(row.prompt, str)
    prepared = prepare_messages(row.prompt, rendering)
    template.refuse_special_tokens(prepared)
    if prepared.messages[-1]["role"] == "assistant":
        raise Refused("the prompt ends with an assistant message, so that nothing is asked", "Take the message out.")
    tools = template.parse_tools(row.tools)
    messages, text = template.render_either_form(prepared.messages, tools, add_generation_prompt=True)
    check_given(prepared, text, template.left_out(messages, tools))
    return text


def _asked(row: Prompt, encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    # Without `tail`: an EOS that the tokenizer adds would end the text that is to be continued.
    ids = np.concatenate([encoded.lead, encoded.ids[encoded.doubled_bos(tokenizer.bos_token_id) :]])
    return Tokens(ids, np.zeros(len(ids), bool), row.source)
