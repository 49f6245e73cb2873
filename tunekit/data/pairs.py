"""Rows of preference data and prompts as token ids: what is compared, labelled or asked.

An answer is trained with its terminator, its prompt never; both come from one tokenisation of prompt and answer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunekit.data.encode import Encoded, check_fast, encode
from tunekit.data.kept import check_given
from tunekit.data.messages import prepare_messages
from tunekit.data.render import CHUNK, reject, render_all
from tunekit.data.rows import Conversation, Messages, Preference, Prompt, Refused, Rejected, Text, Tokens, Unpaired
from tunekit.data.template import ChatTemplate


@dataclass(frozen=True, eq=False)
class Pair:
    """Two answers: the first `prompt_length` ids are the same in both, and none of them is trained."""

    chosen: Tokens
    rejected: Tokens
    prompt_length: int


@dataclass(frozen=True, eq=False)
class Labelled:
    """One answer and whether it is wanted."""

    tokens: Tokens
    label: bool


def render_pairs(
    rows: Sequence[Preference],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None = None,
    system_mode: str = "keep",
    reasoning: str = "keep",
    notes: Counter[str] | None = None,
) -> list[Pair | Rejected]:
    """Each row as a `Pair` or `Rejected`, in order; for the options see `render_all`, which raises the same."""
    answers = [_answered(row, answer) for row in rows for answer in (row.chosen, row.rejected)]
    options = {"system": system, "system_mode": system_mode, "reasoning": reasoning}
    rendered = render_all(answers, tokenizer, loss_on="completion", notes=notes, **options)  # type: ignore[arg-type]
    pairs: list[Pair | Rejected] = []
    for row, chosen, rejected in zip(rows, rendered[::2], rendered[1::2], strict=True):
        try:
            pairs.append(_pair(_only_one("chosen", chosen), _only_one("rejected", rejected)))
        except Refused as refused:
            pairs.append(reject(row, refused))
    return pairs


def render_unpaired(
    rows: Sequence[Unpaired],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None = None,
    system_mode: str = "keep",
    reasoning: str = "keep",
    notes: Counter[str] | None = None,
) -> list[Labelled | Rejected]:
    """Each row as `Labelled` or `Rejected`, in order; for the options see `render_all`, which raises the same."""
    answers = [_answered(row, row.completion) for row in rows]
    options = {"system": system, "system_mode": system_mode, "reasoning": reasoning}
    rendered = render_all(answers, tokenizer, loss_on="completion", notes=notes, **options)  # type: ignore[arg-type]
    labelled: list[Labelled | Rejected] = []
    for row, answer in zip(rows, rendered, strict=True):
        try:
            labelled.append(Labelled(_only_one("completion", answer), row.label))
        except Refused as refused:
            labelled.append(reject(row, refused))
    return labelled


def render_prompts(
    rows: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None = None,
    system_mode: str = "keep",
    reasoning: str = "keep",
) -> list[Tokens | Rejected]:
    """What a model is asked: the ids of each row up to where its answer begins, none trained, or `Rejected`.

    Raises `DataError` as `render_all` does.
    """
    check_fast(tokenizer)
    rendered: list[Tokens | Rejected] = []
    for begin in range(0, len(rows), CHUNK):
        chunk = rows[begin : begin + CHUNK]
        texts = [row for row in chunk if isinstance(row.prompt, str)]
        from_texts = iter(encode(tokenizer, [str(row.prompt) for row in texts], add_special_tokens=True))
        chats = [row for row in chunk if not isinstance(row.prompt, str)]
        from_chats = iter(_ask_chats(chats, tokenizer, system, system_mode, reasoning))
        for row in chunk:
            result = next(from_texts if isinstance(row.prompt, str) else from_chats)
            rendered.append(reject(row, result) if isinstance(result, Refused) else _asked(row, result, tokenizer))
    return rendered


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
        raise Refused(f"{name}: nothing of the answer can be trained")
    return rendered[0]


def _pair(chosen: Tokens, rejected: Tokens) -> Pair:
    length = min(int(tokens.trained.argmax()) for tokens in (chosen, rejected))
    differs = np.flatnonzero(chosen.ids[:length] != rejected.ids[:length])
    if np.array_equal(chosen.ids, rejected.ids):
        raise Refused("chosen and rejected are the same tokens", "Take the row out: it prefers nothing.")
    return Pair(chosen, rejected, int(differs[0]) if len(differs) else length)


def _ask_chats(
    rows: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, system: str | None, system_mode: str, reasoning: str
) -> list[Encoded | Refused]:
    if not rows:
        return []
    template = ChatTemplate(tokenizer, rows[0].source)
    options = {"system": system, "system_mode": system_mode, "reasoning": reasoning}
    asked: list[str | Refused] = []
    for row in rows:
        try:
            asked.append(_ask(row, template, options))
        except Refused as refused:
            asked.append(refused)
    texts = iter(encode(tokenizer, [text for text in asked if isinstance(text, str)], add_special_tokens=False))
    return [next(texts) if isinstance(text, str) else text for text in asked]


def _ask(row: Prompt, template: ChatTemplate, options: dict[str, str | None]) -> str:
    prepared = prepare_messages(row.prompt, **options)  # type: ignore[arg-type]
    template.refuse_special_tokens(prepared)
    if prepared.messages[-1]["role"] == "assistant":
        raise Refused("the prompt ends with an assistant message, so that nothing is asked", "Take the message out.")
    tools = template.parse_tools(row.tools)
    _, text = template.render_either_form(prepared.messages, tools, add_generation_prompt=True)
    check_given(prepared, text)
    return text


def _asked(row: Prompt, encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    # Without `tail`: an EOS that the tokenizer adds would end the text that is to be continued.
    ids = np.concatenate([encoded.lead, encoded.ids[encoded.doubled_bos(tokenizer.bos_token_id) :]])
    return Tokens(ids, np.zeros(len(ids), bool), row.source)
