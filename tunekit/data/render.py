"""Rows as token ids and the mask of trained tokens, both from one tokenisation of one rendering.

The mask of a turn goes up to and including its terminator, and not over the line break that the template writes after
it, which is never generated. So do templates with `{% generation %}` markers; where there are markers, they must agree.
A token belongs to the turn in which it begins; one that begins in the generation prompt is not trained.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tunekit.data.encode import Encoded, check_fast, encode, tokens_in
from tunekit.data.rows import AnyRow, Conversation, Refused, Rejected, Text, Tokens
from tunekit.data.template import ChatTemplate
from tunekit.data.turns import Part, find_parts, no_terminator, read_chat
from tunekit.errors import DataError

# Rows tokenised by one call: many enough that the cost of a call vanishes, few enough to hold in memory.
CHUNK = 1000
BEGINS_IN_PROMPT = "turns whose first token begins in the generation prompt, so that it is not trained"


def render_all(
    rows: Sequence[Conversation | Text],
    tokenizer: PreTrainedTokenizerBase,
    *,
    loss_on: str = "assistant",
    system: str | None = None,
    system_mode: str = "keep",
    reasoning: str = "keep",
    notes: Counter[str] | None = None,
) -> list[list[Tokens] | Rejected]:
    """Each row as the `Tokens` that come of it, or `Rejected`, in order; they may hold no trained token.

    `loss_on` is `assistant` (every assistant turn), `last` (the last one), `completion` (the turns of a conversation
    that marks its prompt `"train": False`, else as `last`) or `all` (every token but the first). Assistant turns marked
    `"train": False` are trained under none of them. Of raw text the completion is trained, with an EOS, or `all`.

    `system` goes before conversations without a system message (`system_mode: keep`) or in the place of theirs
    (`replace`), or none has one (`drop`). `reasoning: keep` gives a turn that the template renders differently once it
    is history a row of its own; `template` trains it as the whole conversation has it; `drop` takes the reasoning out
    of the data. `notes` counts what was changed and what the template changes.

    Raises `DataError` where no row could be rendered: a slow tokenizer, no chat template, no EOS for raw text.
    """
    check_fast(tokenizer)
    notes = Counter() if notes is None else notes
    options = {"loss_on": loss_on, "system": system, "system_mode": system_mode, "reasoning": reasoning}
    first = next((row for row in rows if isinstance(row, Conversation)), None)
    template = ChatTemplate(tokenizer, first.source) if first else None
    rendered: list[list[Tokens] | Rejected] = []
    for begin in range(0, len(rows), CHUNK):
        chunk = rows[begin : begin + CHUNK]
        chats = [row for row in chunk if isinstance(row, Conversation)]
        texts = [row for row in chunk if isinstance(row, Text)]
        from_chats = iter(_render_chats(chats, template, options) if template else [])
        from_texts = iter(_render_texts(texts, tokenizer, loss_on) if texts else [])
        for row in chunk:
            result = next(from_chats) if isinstance(row, Conversation) else next(from_texts)
            if isinstance(result, Refused):
                rendered.append(reject(row, result))
            elif isinstance(result, Tokens):
                rendered.append([result])
            else:
                notes.update(result[0][0].chat.prepared.notes)
                rendered.append([tokens for _, tokens in result])
    return rendered


def serving_examples(
    rows: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    loss_on: str = "assistant",
    system: str | None = None,
    system_mode: str = "keep",
    reasoning: str = "keep",
) -> list[dict[str, Any]]:
    """What a server that has only the saved tokenizer must make of the rows: JSON objects, one for each row of tokens.

    `tokenizer.apply_chat_template(messages, tools=tools, return_dict=False)` must give `ids`, which are those trained.
    What no one rendering gives (see `Part`) is left out.
    """
    template = ChatTemplate(tokenizer, rows[0].source)
    options = {"loss_on": loss_on, "system": system, "system_mode": system_mode, "reasoning": reasoning}
    return [
        {"source": part.source, "messages": part.messages, "tools": part.chat.tools, "ids": tokens.ids.tolist()}
        for result in _render_chats(rows, template, options)
        if not isinstance(result, Refused)
        for part, tokens in result
        if not part.joined
    ]


def reject(row: AnyRow, refused: Refused) -> Rejected:
    """The row as `Rejected`, with what it says."""
    read = {key: value for key, value in vars(row).items() if value is not None and key != "source"}
    return Rejected(row.source, refused.reason, read, refused.fix)


def _render_texts(rows: list[Text], tokenizer: PreTrainedTokenizerBase, loss_on: str) -> list[Tokens | Refused]:
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"{rows[0].source}: the tokenizer has no eos_token, so that raw text could not teach where to stop",
            "Set eos_token in the model's tokenizer_config.json.",
        )
    encoded = encode(tokenizer, [row.prompt + row.completion for row in rows], add_special_tokens=True)
    return [
        text if isinstance(text, Refused) else _render_text(row, text, tokenizer, loss_on)
        for row, text in zip(rows, encoded, strict=True)
    ]


def _render_text(row: Text, encoded: Encoded, tokenizer: PreTrainedTokenizerBase, loss_on: str) -> Tokens:
    eos = tokenizer.eos_token_id
    first, _ = tokens_in(encoded, len(row.prompt), len(encoded.text), tokenizer)
    doubled = encoded.doubled_bos(tokenizer.bos_token_id)
    ids, tail = encoded.ids[doubled:], encoded.tail
    body = np.arange(doubled, len(encoded.ids)) >= (0 if loss_on == "all" else first)
    if len(tail) and len(ids) and tail[0] == ids[-1] == eos:
        tail = tail[1:]  # the text writes the EOS that the tokenizer adds
    whole = np.concatenate([encoded.lead, ids, tail])
    trained = np.concatenate([np.zeros(len(encoded.lead), bool), body, np.ones(len(tail), bool)])
    if not len(whole) or whole[-1] != eos:
        whole, trained = np.append(whole, np.int32(eos)), np.append(trained, True)
    trained[0] = False
    return Tokens(whole, trained, row.source)


def _render_chats(
    rows: Sequence[Conversation], template: ChatTemplate, options: dict[str, Any]
) -> list[list[tuple[Part, Tokens]] | Refused]:
    """What each conversation gives: renderings and their tokens, or why it gives none."""
    found: list[list[Part] | Refused] = []
    for row in rows:
        try:
            found.append(find_parts(read_chat(row, template, **options), template))
        except Refused as refused:
            found.append(refused)
    texts = [part.text for parts in found if not isinstance(parts, Refused) for part in parts]
    # No special tokens here: a template writes the BOS itself, a second one would shift every row.
    encoded = iter(encode(template.tokenizer, texts, add_special_tokens=False))
    rendered: list[list[tuple[Part, Tokens]] | Refused] = []
    for parts in found:
        if isinstance(parts, Refused):
            rendered.append(parts)
            continue
        pairs = [(part, next(encoded)) for part in parts]
        try:
            rendered.append([(part, _mask(part, text, template)) for part, text in pairs])
        except Refused as refused:
            rendered.append(refused)
    return rendered


def _mask(part: Part, encoded: Encoded | Refused, template: ChatTemplate) -> Tokens:
    """The tokens of a rendering, with those of its turns trained, or for `loss_on: all` with all the others trained."""
    if isinstance(encoded, Refused):
        raise encoded
    train_others = part.chat.loss_on == "all"
    trained = np.full(len(encoded.ids), train_others)
    for turn in part.turns:
        first, last = tokens_in(encoded, turn.start, turn.end, template.tokenizer)
        if not train_others:
            if last == first or int(encoded.ids[last - 1]) not in template.terminators:
                raise no_terminator(part.chat.prepared.place(turn.index), encoded.text[turn.start : turn.end])
            if first > 0 and encoded.ends[first - 1] > turn.start:
                part.chat.prepared.notes.append(BEGINS_IN_PROMPT)
        trained[first:last] = not train_others
    trained[:1] = False
    if not train_others and not part.joined and template.has_markers(part.chat.tools):
        _cross_check(part, encoded, trained, template)
    return Tokens(encoded.ids, trained, part.source)


def _cross_check(part: Part, encoded: Encoded, trained: NDArray[np.bool_], template: ChatTemplate) -> None:
    """Raises `Refused` where `{% generation %}` marks other tokens.

    White space and special tokens do not count, nor does what the generation prompt supplies. By characters: the token
    masks of `apply_chat_template` end at the first marker that no token begins at, as where trim_offsets hides the
    space of an answer that starts with one.
    """
    marked = np.zeros(len(encoded.ids), bool)
    for start, end in template.marked(part.messages, part.chat.tools):
        first, last = tokens_in(encoded, start, end, template.tokenizer)
        marked[first:last] = True
    differs = trained != marked
    if [turn.index for turn in part.turns] != [i for i, m in enumerate(part.messages) if m["role"] == "assistant"]:
        differs &= trained  # the markers do not know which turns are left out
    prompt = template.generation_prompt
    for turn in part.turns:
        if prompt and encoded.text.endswith(prompt, 0, turn.start):
            first, last = tokens_in(encoded, turn.start - len(prompt), turn.start, template.tokenizer)
            differs[first:last] = False
    for k in np.flatnonzero(differs).tolist():
        if encoded.piece(k).strip() and int(encoded.ids[k]) not in template.terminators:
            start, end = int(encoded.starts[k]), int(encoded.ends[k])
            raise Refused(
                "the chat template's generation markers and its renderings disagree on the token "
                f"{encoded.piece(k)!r} in {encoded.text[max(0, start - 30) : end + 30]!r} (character {start})",
                "Correct the template: the markers go around what the model writes in an assistant turn.",
            )
