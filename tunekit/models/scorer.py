"""The policy of a reward model: a batch goes in, one reward for each answer comes out.

A decoder reads the reward at the last token that is not padding, by a linear layer called `score`, so that answers lie
side by side and share their prompts as in `Policy`. An encoder, or whatever else transformers has a sequence
classification head for, goes through its own forward pass on padded rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunekit.data.batch import Batch, padded_batch
from tunekit.data.rows import Tokens
from tunekit.models.policy import Policy


class Scorer(Policy):
    """Wraps a sequence-classification model with one output; answers are scored, prompt included."""

    generates = False

    def __init__(self, model: nn.Module, dtype: torch.dtype, pad_id: int) -> None:
        super().__init__(model, dtype, pad_id)
        self.flat = self.flat and hasattr(self.causal, "score")

    def _has_plain_head(self) -> bool:
        return False

    def forward(self, batch: Batch) -> Tensor:
        """Rewards in fp32, `(A,)`."""
        with torch.autocast(batch.input_ids.device.type, self.dtype, enabled=self.autocast):
            if batch.segments is None:
                output = self.causal(batch.input_ids, attention_mask=batch.attention_mask)
                return output.logits[:, 0].float()
            hidden = self.causal.base_model(batch.input_ids, **self._layout(batch)).last_hidden_state
        return _score(self.causal.score, hidden.flatten(0, 1)[batch.ends])

    def _outputs(self, answer: Tokens) -> int:
        return 1

    def _reference(self, row: Tokens) -> Tensor:
        batch = padded_batch([row], self.pad_id).to(self.causal.device)
        with torch.autocast(batch.input_ids.device.type, self.dtype, enabled=self.autocast):
            return self.causal(batch.input_ids).logits[:, 0].float()

    def rewards(self, rows: Sequence[Any], batch_size: int) -> Tensor:
        """Rewards of the answers of `rows`, in their order: `(R, K)`."""
        self.eval()
        with torch.no_grad():
            parts = [self(self.batch(rows[i : i + batch_size])) for i in range(0, len(rows), batch_size)]
        return torch.cat(parts).view(len(rows), -1)


def _score(head: Any, hidden: Tensor) -> Tensor:
    """The head in its own precision, which is fp32 where it is trained, whatever that of the model is."""
    weight = head.weight if isinstance(head, nn.Linear) else head.modules_to_save[head.active_adapters[0]].weight
    return (hidden.to(weight.dtype) @ weight.T).squeeze(-1).float()
