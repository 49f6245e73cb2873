"""Texts as token ids with the characters that each token stands for: one tokenisation, from which masks are read."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import BatchEncoding, PreTrainedTokenizerBase

from tunekit.data.rows import Refused
from tunekit.errors import DataError

# Characters that one call of the tokenizer gets: enough that the cost of a call vanishes, and few, as each token has
# Python objects of some 300 bytes until the call is over.
BATCH = 1_000_000


@dataclass(frozen=True, eq=False)
class Encoded:
    """A tokenised text: `ids` and the characters `[starts, ends)` of each token, all (T,).

    `lead` and `tail` ids stand before and after it: special tokens that the tokenizer adds by itself.
    """

    text: str
    lead: NDArray[np.int32]
    ids: NDArray[np.int32]
    tail: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]

    def piece(self, k: int) -> str:
        return self.text[self.starts[k] : self.ends[k]]

    def end_before(self, k: int) -> int:
        """The character at which the token before token `k` ends."""
        return int(self.ends[k - 1]) if k else 0

    def doubled_bos(self, bos: int | None) -> int:
        """1 where the text writes the BOS that the tokenizer adds, else 0."""
        return int(len(self.lead) > 0 and len(self.ids) > 0 and self.lead[-1] == self.ids[0] == bos)


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `DataError` for a tokenizer that cannot say which characters a token stands for."""
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} is a slow tokenizer: it does not say which characters a token stands for",
            "Use a model folder that has a tokenizer.json.",
        )


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, add_special_tokens: bool
) -> Iterator[Encoded | Refused]:
    """Each text tokenised, or why no tokenizer takes it, in order and as they are asked for."""
    for batch in _batches(texts):
        refused = [_refusal(text) for text in batch]
        valid = [text for text, problem in zip(batch, refused, strict=True) if problem is None]
        encoded = iter(_encode(tokenizer, valid, add_special_tokens) if valid else [])
        for problem in refused:
            yield problem or next(encoded)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _refusal(text: str) -> Refused | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return Refused("half of a surrogate pair (\\ud800 to \\udfff) stands alone in it")
    return None


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], add_special_tokens: bool) -> list[Encoded]:
    batch = tokenizer(
        list(texts),
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    return [_encoded(text, batch, i) for i, text in enumerate(texts)]


def _encoded(text: str, batch: BatchEncoding, i: int) -> Encoded:
    ids = np.array(batch["input_ids"][i], np.int32)
    pairs = batch["offset_mapping"][i]
    offsets = np.fromiter(itertools.chain.from_iterable(pairs), np.int32, 2 * len(pairs)).reshape(-1, 2)
    body = np.flatnonzero(np.array(batch["special_tokens_mask"][i]) == 0)
    a, b = (int(body[0]), int(body[-1]) + 1) if len(body) else (len(ids), len(ids))
    starts, ends = offsets[a:b].T.copy()  # each in one piece, as a search wants it
    return Encoded(text, ids[:a], ids[a:b], ids[b:], starts, ends)


def tokens_in(encoded: Encoded, start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The tokens `[first, last)` that begin inside the characters `[start, end)`."""
    first, last = np.searchsorted(encoded.starts, np.array([start, end], np.int32)).tolist()
    # Byte-level tokenizers with trim_offsets leave a token's spaces out of its offsets. The prompt supplied those
    # between the token before and `start`, so the token with them begins there.
    while first < last and encoded.end_before(first) < start:
        if not str(tokenizer.convert_ids_to_tokens(int(encoded.ids[first]))).startswith("Ġ"):
            break
        first += 1
    return first, last


def taken_before(encoded: Encoded, first: int, start: int) -> str:
    """The characters before `start` of the token before token `first`, where it reaches beyond `start`; else `""`."""
    k = first - 1
    if k < 0 or encoded.ends[k] <= start:
        return ""
    begin = encoded.starts[k] if encoded.starts[k] < start else encoded.end_before(k)  # else: see `tokens_in`
    return encoded.text[begin:start]
