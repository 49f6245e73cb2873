"""Log-likelihoods of given texts, on the packed path: rows of any length side by side, no padding, no logits kept.

A continuation is scored as lm-evaluation-harness does it (Gao et al., `lm_eval/api/model.py`), so that figures can be
compared: the white space at the end of a context belongs to the continuation, and its tokens are those that context and
continuation together have beyond the context alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tunekit.data.rows import Tokens
from tunekit.models.policy import Policy

BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}


class Likelihood(NamedTuple):
    """Summed log-probability of a continuation in nats, its tokens, and tokens of the context that had no room."""

    total: float
    num_tokens: int
    cut: int


def continuation(tokenizer: PreTrainedTokenizerBase, context: str, text: str, *, chat: bool) -> tuple[list[int], int]:
    """Ids of context and continuation together, and how many of them are the context's.

    `chat`: the context is a rendered chat template, which writes its own special tokens. An empty context is the
    token that begins a text, or that ends one where there is none.
    """
    if not context:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return (ids, 1) if ids[:1] == [prefix] else ([prefix, *ids], 1)
    bare = context.rstrip()
    space = context[len(bare) :]
    own = chat or (tokenizer.bos_token is not None and bare.startswith(tokenizer.bos_token))
    whole, alone = tokenizer([bare + space + text, bare], add_special_tokens=not own)["input_ids"]
    return whole, len(alone)


def windows(ids: Sequence[int], prefix: int, length: int) -> Iterator[tuple[list[int], int]]:
    """A text of any length in windows of `length` tokens at most, each with how many of its last tokens are scored.

    Each token is scored once; the last window reaches back, so that its tokens have as much context as there is.
    """
    whole = [prefix, *ids]
    first = min(length, len(ids))
    yield whole[: first + 1], first
    for begin in range(first, len(ids), length):
        end = min(begin + length, len(ids))
        yield whole[max(0, end - length) : end + 1], end - begin


@torch.no_grad()
def score(
    policy: Policy,
    rows: Sequence[tuple[Sequence[int], int]],
    *,
    room: int | None = None,
    batch_tokens: int | None = None,
    poll: Callable[[], None] = lambda: None,
) -> list[Likelihood]:
    """The likelihood of the last tokens of each row, `(ids, number of tokens that are given)`, in order.

    A row over `room` tokens (see `room_of`) is cut at its beginning. Rows of similar length share a batch of
    `batch_tokens`; `poll` is called before each.
    """
    device = policy.causal.device.type
    limit = batch_tokens or BATCH_TOKENS.get(device, BATCH_TOKENS["cuda"])
    prepared = [_row(ids, given, room) for ids, given in rows]
    results: list[Likelihood | None] = [None] * len(rows)
    policy.eval()
    for numbers in _batches([len(row.ids) for row, _ in prepared], limit, padded=not policy.flat):
        poll()
        chosen = [prepared[i][0] for i in numbers]
        counts = [int(row.trained.sum()) for row in chosen]
        if not sum(counts):
            totals = [0.0] * len(counts)
        else:
            found = policy(policy.batch(chosen)).double()
            totals = [float(part.sum()) for part in found.split(counts)]
        for i, total, count in zip(numbers, totals, counts, strict=True):
            results[i] = Likelihood(total, count, prepared[i][1])
    return [result for result in results if result is not None]


def room_of(config: PretrainedConfig) -> int | None:
    """Tokens that a row may have: the context, and one that is only predicted where positions are not a table."""
    text = config.get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    return context if context is None or not getattr(text, "rope_parameters", None) else context + 1


def _row(ids: Sequence[int], given: int, room: int | None) -> tuple[Tokens, int]:
    cut = 0 if room is None else max(0, len(ids) - room)
    kept = np.array(ids[cut:], np.int32)
    return Tokens(kept, np.arange(len(kept)) >= max(given - cut, 1), ""), cut


def _batches(lengths: Sequence[int], limit: int, *, padded: bool) -> Iterator[list[int]]:
    """Numbers of rows that together hold at most `limit` tokens, padding included; the longest come first."""
    batch: list[int] = []
    held = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        size = lengths[batch[0]] if padded and batch else lengths[i]
        if batch and held + size > limit:
            yield batch
            batch, held, size = [], 0, lengths[i]
        batch.append(i)
        held += size
    if batch:
        yield batch
