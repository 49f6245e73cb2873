"""Rows as token ids and the mask of trained tokens, both from one tokenisation of one rendering.

The mask of a turn goes up to and including its terminator, and not over the line break that the template writes after
it, which is never generated. So do templates with `{% generation %}` markers; where there are markers, they must agree.
A token belongs to the turn in which it begins. One that begins in the white space at the end of the prompt and reaches
into the answer is trained, as the answer could not be learnt without it; one that begins in the prompt's words is not.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tunekit.data.chat import Part, Turn, read_chat
from tunekit.data.encode import Encoded, check_fast, encode, taken_before, tokens_in
from tunekit.data.notes import BEGINS_IN_PROMPT, BEGINS_IN_SPACE
from tunekit.data.rendering import PLAIN, Rendering
from tunekit.data.rows import AnyRow, Conversation, Refused, Rejected, Text, Tokens
from tunekit.data.template import ChatTemplate
from tunekit.data.turns import find_parts, no_terminator
from tunekit.errors import DataError


def render_all(
    rows: Sequence[Conversation | Text],
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering = PLAIN,
    notes: Counter[str] | None = None,
) -> list[list[Tokens] | Rejected]:
    """Each row as the `Tokens` that come of it, or `Rejected`, in order; they may hold no trained token.

    `notes` counts what was changed and what the template changes. Raises `DataError` where no row could be rendered: a
    slow tokenizer, no chat template, no EOS for raw text.
    """
    check_fast(tokenizer)
    notes = Counter() if notes is None else notes
    from_chats = _render_chats([row for row in rows if isinstance(row, Conversation)], tokenizer, rendering)
    from_texts = _render_texts([row for row in rows if isinstance(row, Text)], tokenizer, rendering, notes)
    rendered: list[list[Tokens] | Rejected] = []
    for row in rows:
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
    rows: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN
) -> list[dict[str, Any]]:
    """What a server that has only the saved tokenizer must make of the rows: JSON objects, one for each row of tokens.

    `tokenizer.apply_chat_template(messages, tools=tools, return_dict=False)` must give `ids`, which are those trained,
    but for the date, which is the server's. What no one rendering gives (see `Part`) is left out.
    """
    return [
        {"source": part.source, "messages": part.messages, "tools": part.chat.tools, "ids": tokens.ids.tolist()}
        for result in _render_chats(rows, tokenizer, replace(rendering, date=None))
        if not isinstance(result, Refused)
        for part, tokens in result
        if not part.joined
    ]


def reject(row: AnyRow, refused: Refused) -> Rejected:
    """The row as `Rejected`, with what it says."""
    read = {key: value for key, value in vars(row).items() if value is not None and key != "source"}
    return Rejected(row.source, refused.reason, read, refused.fix)


def _render_texts(
    rows: Sequence[Text], tokenizer: PreTrainedTokenizerBase, rendering: Rendering, notes: Counter[str]
) -> Iterator[Tokens | Refused]:
    if rows and tokenizer.eos_token_id is None:
        raise DataError(
            f"{rows[0].source}: the tokenizer has no eos_token, so that raw text could not teach where to stop",
            "Set eos_token in the model's tokenizer_config.json.",
        )
    encoded = encode(tokenizer, [row.prompt + row.completion for row in rows], add_special_tokens=True)
    for row, text in zip(rows, encoded, strict=True):
        try:
            yield text if isinstance(text, Refused) else _render_text(row, text, tokenizer, rendering.loss_on, notes)
        except Refused as refused:
            yield refused


def _render_text(
    row: Text, encoded: Encoded, tokenizer: PreTrainedTokenizerBase, loss_on: str, notes: Counter[str]
) -> Tokens:
    eos = tokenizer.eos_token_id
    first = 0
    if loss_on != "all":
        begin, end = len(row.prompt), len(encoded.text)
        first, last, found = _tokens_of_answer(encoded, begin, end, tokenizer, blank=None)
        first = max(first, 0 if len(encoded.lead) else 1)  # nothing stands before the first token of a row
        _refuse_silence(encoded, (first, last), (begin, end), "the completion")
        notes.update(found)
    doubled = encoded.doubled_bos(tokenizer.bos_token_id)
    ids, tail = encoded.ids[doubled:], encoded.tail
    body = np.arange(doubled, len(encoded.ids)) >= first
    if len(tail) and len(ids) and tail[0] == ids[-1] == eos:
        tail = tail[1:]  # the text writes the EOS that the tokenizer adds
    whole = np.concatenate([encoded.lead, ids, tail])
    trained = np.concatenate([np.zeros(len(encoded.lead), bool), body, np.ones(len(tail), bool)])
    if not len(whole) or whole[-1] != eos:
        whole, trained = np.append(whole, np.int32(eos)), np.append(trained, True)
    trained[0] = False
    return Tokens(whole, trained, row.source)


def _tokens_of_answer(
    encoded: Encoded, start: int, end: int, tokenizer: PreTrainedTokenizerBase, *, blank: str | None
) -> tuple[int, int, list[str]]:
    """The tokens `[first, last)` of what is said in the characters `[start, end)`, and what is to be noted.

    `blank`: the characters at the end of the prompt in which the first may begin (None: all white space).
    """
    first, last = tokens_in(encoded, start, end, tokenizer)
    taken = taken_before(encoded, first, start)
    if taken and not taken.strip(blank):
        return first - 1, last, [BEGINS_IN_SPACE]
    return first, last, [BEGINS_IN_PROMPT] if taken else []


def _refuse_silence(encoded: Encoded, tokens: tuple[int, int], answer: tuple[int, int], place: str) -> None:
    """Raises `Refused` where the tokens `[first, last)` say nothing of an answer, characters `[start, end)`."""
    (first, last), (start, end) = tokens, answer
    if not encoded.text[start:end].strip():
        return
    if first < last and encoded.text[max(start, encoded.starts[first]) : end].strip():
        return
    reason = f"{place}: none of it can be trained but the token that ends it"
    fix = "Let the prompt end where a word ends, and the answer begin with the white space; or take the row out."
    if first and encoded.starts[first - 1] < start:
        reason += f": the token {encoded.piece(first - 1)!r} begins in the prompt"
    elif first:
        reason += f": the token {encoded.piece(first - 1)!r} is the first of the row, with nothing before it"
        fix = "Give the row a prompt, or take it out."
    raise Refused(reason, fix)


def _render_chats(
    rows: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, rendering: Rendering
) -> Iterator[list[tuple[Part, Tokens]] | Refused]:
    """What each conversation gives: renderings and their tokens, or why it gives none."""
    if not rows:
        return
    template = ChatTemplate(tokenizer, rows[0].source, rendering.date)
    found: deque[list[Part] | Refused] = deque()

    def texts() -> Iterator[str]:
        for row in rows:
            try:
                parts = find_parts(read_chat(row, template, rendering), template)
            except Refused as refused:
                found.append(refused)
            else:
                found.append(parts)
                yield from (part.text for part in parts)

    made: list[tuple[Part, Tokens]] = []
    problems: list[Refused] = []
    # No special tokens here: a template writes the BOS itself, a second one would shift every row.
    for text in encode(tokenizer, texts(), add_special_tokens=False):
        while isinstance(parts := found[0], Refused):
            yield parts
            found.popleft()
        part = parts[len(made) + len(problems)]
        try:
            made.append((part, _mask(part, text, template)))
        except Refused as refused:
            problems.append(refused)
        if len(made) + len(problems) == len(parts):
            yield problems[0] if problems else made
            made, problems = [], []
            found.popleft()
    for rest in found:
        assert isinstance(rest, Refused)
        yield rest


def _mask(part: Part, encoded: Encoded | Refused, template: ChatTemplate) -> Tokens:
    """The tokens of a rendering, with those of its turns trained, or for `loss_on: all` with all the others trained."""
    if isinstance(encoded, Refused):
        raise encoded
    train_others = part.chat.loss_on == "all"
    trained = np.full(len(encoded.ids), train_others)
    for turn in part.turns:
        first, last, notes = _tokens_of_answer(encoded, turn.start, turn.end, template.tokenizer, blank=" ")
        if not train_others:
            _check_turn(part, turn, encoded, (first, last), template)
            part.chat.prepared.notes.extend(notes)
        trained[first:last] = not train_others
    trained[:1] = False
    if not train_others and not part.joined and template.has_markers(part.chat.tools):
        _cross_check(part, encoded, trained, template)
    return Tokens(encoded.ids, trained, part.source)


def _check_turn(part: Part, turn: Turn, encoded: Encoded, tokens: tuple[int, int], template: ChatTemplate) -> None:
    """Raises `Refused` where the tokens of a turn do not end with a terminator, or are nothing else."""
    first, last = tokens
    place = part.chat.prepared.place(turn.index)
    end = last
    while end > first and int(encoded.ids[end - 1]) in template.terminators:
        end -= 1
    if end == last:
        raise no_terminator(place, encoded.text[turn.start : turn.end])
    _refuse_silence(encoded, (first, end), (turn.start, int(encoded.starts[end])), place)


def _cross_check(part: Part, encoded: Encoded, trained: NDArray[np.bool_], template: ChatTemplate) -> None:
    """Raises `Refused` where `{% generation %}` marks other tokens.

    White space and special tokens do not count, nor does what the generation prompt supplies. By characters: the token
    masks of `apply_chat_template` end at the first marker that no token begins at, as where trim_offsets hides the
    space of an answer that starts with one.
    """
    marked = np.zeros(len(encoded.ids), bool)
    for start, end in template.marked(part.messages, part.chat.tools):
        first, last, _ = _tokens_of_answer(encoded, start, end, template.tokenizer, blank=" ")
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
