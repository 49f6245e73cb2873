"""Texts as token ids with the characters that each token stands for: one tokenisation, from which masks are read."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import BatchEncoding, PreTrainedTokenizerBase

from tunekit.data.rows import Refused
from tunekit.errors import DataError


@dataclass(frozen=True, eq=False)
class Encoded:
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
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool
) -> list[Encoded | Refused]:
    """Each text tokenised, or why no tokenizer takes it."""
    refused = [_refusal(text) for text in texts]
    valid = [text for text, problem in zip(texts, refused, strict=True) if problem is None]
    if not valid:
        return [problem for problem in refused if problem is not None]
    batch = tokenizer(
        valid,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    encoded = iter([_encoded(text, batch, i) for i, text in enumerate(valid)])
    return [problem or next(encoded) for problem in refused]


def _refusal(text: str) -> Refused | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return Refused("half of a surrogate pair (\\ud800 to \\udfff) stands alone in it")
    return None


def _encoded(text: str, batch: BatchEncoding, i: int) -> Encoded:
    ids = np.array(batch["input_ids"][i], np.int32)
    pairs = batch["offset_mapping"][i]
    offsets = np.fromiter(itertools.chain.from_iterable(pairs), np.int64, 2 * len(pairs)).reshape(-1, 2)
    body = np.flatnonzero(np.array(batch["special_tokens_mask"][i]) == 0)
    a, b = (int(body[0]), int(body[-1]) + 1) if len(body) else (len(ids), len(ids))
    return Encoded(text, ids[:a], ids[a:b], ids[b:], offsets[a:b, 0], offsets[a:b, 1])


def tokens_in(encoded: Encoded, start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The tokens `[first, last)` that begin inside the characters `[start, end)`."""
    first, last = np.searchsorted(encoded.starts, [start, end]).tolist()
    # Byte-level tokenizers with trim_offsets leave a token's spaces out of its offsets. The prompt supplied those
    # between the token before and `start`, so the token with them begins there.
    while first < last and (encoded.ends[first - 1] if first else 0) < start:
        if not str(tokenizer.convert_ids_to_tokens(int(encoded.ids[first]))).startswith("Ġ"):
            break
        first += 1
    return first, last
