"""Keys and values of answers that are being written together, each after its prompt.

A prompt goes through the model once, however many answers continue it. The columns of the buffers are the prompts, each
up to the same last column, and then the answers token by token, all at the same one: answers that are done leave.

Axes: A answers, H query heads, K key/value heads, D head width, L tokens of the longest prompt, S columns.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ROOM = 64  # columns added at a time at first, then as many as there are


class KeyValues:
    """`lengths`: of the prompts as they lie in the row of the first pass;  `prompt_of`: of each answer its prompt."""

    def __init__(self, lengths: Sequence[int], prompt_of: Sequence[int], device: torch.device) -> None:
        self.lengths, self.prompt_of = tuple(lengths), tuple(prompt_of)
        self.keys: dict[int, Tensor] = {}  # of each layer (A, K, S, D)
        self.values: dict[int, Tensor] = {}
        self.columns = max(lengths)  # that are filled
        own = torch.tensor([lengths[i] for i in prompt_of], device=device)
        self.first = self.columns - own  # column at which each answer's prompt begins (A,)
        self.positions = own  # of the next token of each answer (A,)

    def fill(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Takes those of the prompts, `(1, K, T, D)`."""
        for buffers, given in ((self.keys, key), (self.values, value)):
            _, heads, _, width = given.shape
            size = (len(self.lengths), heads, self.columns + ROOM, width)
            prompts = torch.zeros(size, dtype=given.dtype, device=given.device)
            for i, prompt in enumerate(given[0].split(self.lengths, 1)):
                prompts[i, :, self.columns - prompt.shape[1] : self.columns] = prompt
            buffers[layer] = prompts[list(self.prompt_of)]

    def advance(self) -> None:
        """Every answer gets one more column, for the token that goes through the model next."""
        self.columns += 1
        self.positions = self.positions + 1
        for buffers in (self.keys, self.values):
            for layer, buffer in buffers.items():
                if self.columns > buffer.shape[2]:
                    buffers[layer] = torch.cat([buffer, torch.zeros_like(buffer)], 2)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """Attention of the last token of each answer, `(1, H, A, D)`, to all before it and itself: `(1, A, H, D)`."""
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.columns - 1] = key[0].transpose(0, 1)
        values[:, :, self.columns - 1] = value[0].transpose(0, 1)
        _, heads, count, width = query.shape
        grouped = (
            query[0].transpose(0, 1).reshape(count, keys.shape[1], -1, width)
        )  # heads that share keys side by side
        output = F.scaled_dot_product_attention(
            grouped, keys[:, :, : self.columns], values[:, :, : self.columns], self._allowed(window), scale=scaling
        )
        return output.reshape(1, count, heads, width)

    def _allowed(self, window: int | None) -> Tensor | None:
        """`(A, 1, 1, S)`; None where every answer sees all columns."""
        first = self.first if window is None else self.first.clamp(min=self.columns - window)
        if not bool(first.any()):
            return None
        return (torch.arange(self.columns, device=first.device) >= first[:, None])[:, None, None]

    def keep(self, answers: Tensor) -> None:
        """Only the answers with these numbers `(B,)` go on."""
        for buffers in (self.keys, self.values):
            for layer, buffer in buffers.items():
                buffers[layer] = buffer[answers]
        self.first, self.positions = self.first[answers], self.positions[answers]
