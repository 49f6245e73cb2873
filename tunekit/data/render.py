"""Rows as token ids and the mask of trained tokens, both from one tokenisation of one rendering.

The mask of a turn goes up to and including its terminator, and not over the line break that the template writes after
it, which is never generated. So do templates with `{% generation %}` markers; where there are markers, they must agree.
A token belongs to the turn in which it begins; one that begins in the generation prompt is not trained.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from tunekit.data.rows import Conversation, Text, Tokens
from tunekit.data.turns import Chat, Turn, apply_template, chat_template, choose_turns, find_turns
from tunekit.errors import DataError

# Rows rendered and tokenised by one call: many enough that the cost of a call vanishes, few enough to hold in memory.
CHUNK = 1000
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A tokenised text: `ids` and the characters `[starts, ends)` of each token, all (T,).

    `lead` and `tail` ids stand before and after it: special tokens that the tokenizer adds by itself.
    """

    text: str
    lead: NDArray[np.int32]
    ids: NDArray[np.int32]
    tail: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def piece(self, k: int) -> str:
        return self.text[self.starts[k] : self.ends[k]]


def render(
    row: Conversation | Text,
    tokenizer: PreTrainedTokenizerBase,
    *,
    loss_on: str = "assistant",
    system: str | None = None,
) -> Tokens:
    """One row as `Tokens`; see `render_all`."""
    return render_all([row], tokenizer, loss_on=loss_on, system=system)[0]


def render_all(
    rows: Sequence[Conversation | Text],
    tokenizer: PreTrainedTokenizerBase,
    *,
    loss_on: str = "assistant",
    system: str | None = None,
) -> list[Tokens]:
    """Each row as `Tokens`, in order; a row may come out with no trained token.

    `loss_on` is `assistant` (every assistant turn), `last` (the last one), `completion` (the turns of a conversation
    that marks its prompt `"train": False`, else as `last`) or `all` (every token but the first). Assistant turns marked
    `"train": False` are trained under none of them. Of raw text the completion is trained, with an EOS, or `all`.
    `system` goes before conversations without a system message.
    Raises `DataError` with the row's place and the turn where template and row do not go together.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} is a slow tokenizer: it does not say which characters a token stands for",
            "Use a model folder that has a tokenizer.json.",
        )
    tokens: list[Tokens] = []
    for begin in range(0, len(rows), CHUNK):
        chunk = rows[begin : begin + CHUNK]
        chats = [choose_turns(row, loss_on, system) for row in chunk if isinstance(row, Conversation)]
        texts = [row for row in chunk if isinstance(row, Text)]
        from_chats = iter(_render_chats(chats, tokenizer, loss_on) if chats else [])
        from_texts = iter(_render_texts(texts, tokenizer, loss_on) if texts else [])
        tokens += [next(from_chats if isinstance(row, Conversation) else from_texts) for row in chunk]
    return tokens


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, add_special_tokens: bool) -> list[_Encoded]:
    batch = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    encoded = []
    for i, text in enumerate(texts):
        ids = np.array(batch["input_ids"][i], np.int32)
        offsets = np.array(batch["offset_mapping"][i], np.int64).reshape(-1, 2)
        body = np.flatnonzero(np.array(batch["special_tokens_mask"][i]) == 0)
        a, b = (int(body[0]), int(body[-1]) + 1) if len(body) else (len(ids), len(ids))
        encoded.append(_Encoded(text, ids[:a], ids[a:b], ids[b:], offsets[a:b, 0], offsets[a:b, 1]))
    return encoded


def _tokens_in(encoded: _Encoded, start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The tokens `[first, last)` that begin inside the characters `[start, end)`."""
    first, last = np.searchsorted(encoded.starts, [start, end]).tolist()
    # Byte-level tokenizers with trim_offsets leave a token's spaces out of its offsets. The prompt supplied those
    # between the token before and `start`, so the token with them begins there.
    while first < last and (encoded.ends[first - 1] if first else 0) < start:
        if not str(tokenizer.convert_ids_to_tokens(int(encoded.ids[first]))).startswith("Ġ"):
            break
        first += 1
    return first, last


def _render_texts(rows: list[Text], tokenizer: PreTrainedTokenizerBase, loss_on: str) -> list[Tokens]:
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"{rows[0].source}: the tokenizer has no eos_token, so that raw text could not teach where to stop",
            "Set eos_token in the model's tokenizer_config.json.",
        )
    encoded = _encode(tokenizer, [row.prompt + row.completion for row in rows], add_special_tokens=True)
    return [_render_text(row, text, tokenizer, loss_on) for row, text in zip(rows, encoded, strict=True)]


def _render_text(row: Text, encoded: _Encoded, tokenizer: PreTrainedTokenizerBase, loss_on: str) -> Tokens:
    eos = tokenizer.eos_token_id
    first, _ = _tokens_in(encoded, len(row.prompt), len(encoded.text), tokenizer)
    body = np.arange(len(encoded.ids)) >= (0 if loss_on == "all" else first)
    lead, ids, tail = encoded.lead, encoded.ids, encoded.tail
    if len(lead) and len(ids) and lead[-1] == ids[0] == tokenizer.bos_token_id:
        ids, body = ids[1:], body[1:]  # the text writes the BOS that the tokenizer adds
    if len(tail) and len(ids) and tail[0] == ids[-1] == eos:
        tail = tail[1:]  # and the EOS
    whole = np.concatenate([lead, ids, tail])
    trained = np.concatenate([np.zeros(len(lead), bool), body, np.ones(len(tail), bool)])
    if not len(whole) or whole[-1] != eos:
        whole, trained = np.append(whole, np.int32(eos)), np.append(trained, True)
    trained[0] = False
    return Tokens(whole, trained, row.source)


def _render_chats(chats: list[Chat], tokenizer: PreTrainedTokenizerBase, loss_on: str) -> list[Tokens]:
    template = chat_template(tokenizer, chats[0].source)
    wholes = apply_template(tokenizer, [(chat.messages, chat.source) for chat in chats], add_generation_prompt=False)
    turns = find_turns(chats, wholes, tokenizer)
    # No special tokens here: a template writes the BOS itself, a second one would shift every row.
    encoded = _encode(tokenizer, wholes, add_special_tokens=False)
    terminators = possible_terminators(tokenizer)
    rendered = []
    for chat, text, spans in zip(chats, encoded, turns, strict=True):
        trained = np.full(len(text.ids), loss_on == "all")
        for turn in spans:
            if loss_on == "all":
                first, last = _tokens_in(text, turn.start, turn.end, tokenizer)
                trained[first:last] = False
            else:
                first, last = _trained_tokens(chat, turn, text, tokenizer, terminators)
                trained[first:last] = True
        trained[:1] = False
        rendered.append(Tokens(text.ids, trained, chat.source))
    if loss_on != "all" and GENERATION.search(template):
        _cross_check(chats, encoded, rendered, tokenizer, terminators)
    return rendered


def possible_terminators(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that can end a turn: eos and the special tokens, without unk and bos (where bos is not eos too)."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    return (special - {tokenizer.unk_token_id, tokenizer.bos_token_id}) | ({tokenizer.eos_token_id} - {None})


def _trained_tokens(
    chat: Chat, turn: Turn, encoded: _Encoded, tokenizer: PreTrainedTokenizerBase, terminators: set[int]
) -> tuple[int, int]:
    """The tokens `[first, last)` that the model writes in a turn, the last of them its terminator."""
    first, last = _tokens_in(encoded, turn.start, turn.end, tokenizer)
    while last > first and not encoded.piece(last - 1).strip():
        last -= 1
    if last == first or int(encoded.ids[last - 1]) not in terminators:
        ending = encoded.text[turn.start : turn.end][-30:]
        raise DataError(
            f"{chat.source}: message {turn.index} (assistant): the chat template ends the turn with {ending!r}, "
            "without a terminator (a special token): the model would not learn to stop",
            "Set data.chat_template: path.jinja, a template that writes eos_token after the answer.",
        )
    return first, last


def _cross_check(
    chats: list[Chat],
    encoded: list[_Encoded],
    rendered: list[Tokens],
    tokenizer: PreTrainedTokenizerBase,
    terminators: set[int],
) -> None:
    """Raises where `{% generation %}` marks other tokens; whitespace and an unmarked terminator do not count.

    By characters: the token masks of `apply_chat_template` end at the first marker that no token begins at, as where
    trim_offsets hides the space of an answer that starts with one.
    """
    variables: dict[str, Any] = tokenizer.special_tokens_map
    rendering: Any = render_jinja_template(
        [chat.messages for chat in chats],
        chat_template=chat_template(tokenizer, chats[0].source),
        return_assistant_tokens_mask=True,
        **variables,
    )
    markers: list[list[tuple[int, int]]] = rendering[1]
    for chat, text, tokens, spans in zip(chats, encoded, rendered, markers, strict=True):
        marked = np.zeros(len(text.ids), bool)
        for start, end in spans:
            first, last = _tokens_in(text, start, end, tokenizer)
            marked[first:last] = True
        differs = tokens.trained != marked
        if not chat.all_turns:  # the markers do not know which turns are left out
            differs &= tokens.trained
        for k in np.flatnonzero(differs).tolist():
            unmarked_end = tokens.trained[k] and int(text.ids[k]) in terminators
            if text.piece(k).strip() and not unmarked_end:
                start, end = int(text.starts[k]), int(text.ends[k])
                raise DataError(
                    f"{chat.source}: the chat template's generation markers and its renderings disagree on the token "
                    f"{text.piece(k)!r} in {text.text[max(0, start - 30) : end + 30]!r} (character {start})",
                    "Correct the template: the markers go around what the model writes in an assistant turn.",
                )
