"""A reward model on the backbone of the policy: its adapter and head beside the policy's, the base only once."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tunekit.data.rows import Tokens
from tunekit.models import adapter_roles as roles
from tunekit.models.actor import Actor
from tunekit.models.lora import as_trained


class SharedReward:
    """Reads texts as `RewardModel` does; `folder` holds the adapter of a reward model that has the policy's base."""

    def __init__(
        self, actor: Actor, tokenizer: PreTrainedTokenizerBase, folder: Path, name: str, batch_size: int = 16
    ) -> None:
        self.actor, self.tokenizer, self.name, self.batch_size = actor, tokenizer, name, batch_size
        self.head: Tensor = roles.add_reward(actor.model, folder, name).float().to(actor.causal.device)

    @torch.no_grad()
    def rewards(self, texts: Sequence[str], poll: Callable[[], None] = lambda: None) -> list[float]:
        """Rewards of rendered texts, in their order."""
        rows = [_row(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        found = [0.0] * len(rows)
        self.actor.eval()
        with as_trained(self.actor.model), roles.acting(self.actor.model, self.name):
            for start in range(0, len(order), self.batch_size):
                poll()
                chosen = order[start : start + self.batch_size]
                batch = self.actor.batch([rows[i] for i in chosen])
                hidden = self.actor.states(batch)[batch.ends].float()
                for i, reward in zip(chosen, (hidden @ self.head.T).squeeze(1).tolist(), strict=True):
                    found[i] = reward
        return found


def _row(ids: list[int]) -> Tokens:
    return Tokens(np.array(ids, np.int32), np.zeros(len(ids), bool), "")
