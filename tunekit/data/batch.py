"""Batches: rows laid out for one forward pass, flat (segments side by side, no padding) or padded.

Everything above the attention sees log-probabilities of the trained tokens only, so nothing else knows the layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunekit.data.rows import Tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids, and which of their positions predict what.

    input_ids:  `(1, T)` flat, or `(B, L)` padded
    predictors: `(N,)` positions in the flattened `input_ids` whose hidden state predicts a trained token
    targets:    `(N,)` the trained tokens
    segments:   lengths of the examples in a flat row; None in a padded batch
    attention_mask: `(B, L)` of a padded batch; None in a flat row
    """

    input_ids: Tensor
    predictors: Tensor
    targets: Tensor
    segments: tuple[int, ...] | None = None
    attention_mask: Tensor | None = None

    @property
    def weight(self) -> int:
        """Trained tokens: what the summed loss of this batch is divided by, once, over the whole step."""
        return len(self.targets)

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    def to(self, device: torch.device) -> "Batch":
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        return Batch(
            self.input_ids.to(device), self.predictors.to(device), self.targets.to(device), self.segments, mask
        )


def flat_batch(rows: Sequence[Tokens]) -> Batch:
    """The rows one after another in a single row of tokens; the first token of a row is never a target."""
    ids = torch.from_numpy(np.concatenate([row.ids for row in rows]).astype(np.int64))
    trained = np.concatenate([row.trained for row in rows])
    predictors = torch.from_numpy(np.flatnonzero(trained) - 1)
    return Batch(ids[None], predictors, ids[predictors + 1], segments=tuple(len(row.ids) for row in rows))


def padded_batch(rows: Sequence[Tokens], pad_id: int) -> Batch:
    """The rows under each other, padded on the right to the longest; padding is masked by position, never by id."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    trained = np.zeros((len(rows), longest), dtype=bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.from_numpy(row.ids.astype(np.int64))
        mask[i, : len(row.ids)] = True
        trained[i, : len(row.ids)] = row.trained
    predictors = torch.from_numpy(np.flatnonzero(trained) - 1)
    return Batch(ids, predictors, ids.flatten()[predictors + 1], attention_mask=mask)
