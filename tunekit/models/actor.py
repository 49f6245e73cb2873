"""The policy of online reinforcement learning: log-probabilities, entropies and values of the tokens that it wrote.

One frozen backbone can carry all that is needed: the policy is an adapter on it, the reference the backbone with the
adapter as it was at the start (mostly none), the value function a head on the policy or an adapter of its own, and the
reward model a further adapter (see models/shared_reward.py).

Axes: N trained tokens, E hidden width.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tunekit.data.batch import Batch
from tunekit.models import adapter_roles as roles
from tunekit.models.policy import Policy
from tunekit.ops.logprobs import token_logprobs, token_logprobs_and_entropies

Reference = Callable[[Batch], Tensor]  # log-probabilities (N,) of the targets under the reference


class Value(nn.Module):
    """What return is to be expected before each token: a linear head, in fp32, on hidden states.

    They are those of the policy, of the policy's backbone under the adapter `adapter`, or of `model`.
    """

    def __init__(self, width: int, adapter: str | None = None, model: nn.Module | None = None) -> None:
        super().__init__()
        self.adapter = adapter
        self.model = model
        self.autocast = False  # of a model that is trained whole in fp32, while products are in another precision
        self.score = nn.Linear(width, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(N,)` of hidden states `(N, E)`."""
        values: Tensor = self.score(hidden.float()).squeeze(-1)
        return values


class Actor(Policy):
    """A policy that gives `(N, 3)` once it `acts`: log-probability, entropy (0 unless asked for) and value (or 0).

    Logits are divided by `temperature`, so that what is trained is the distribution that was sampled.
    """

    acting = False
    temperature = 1.0
    entropy = False

    def act(self, *, temperature: float, entropy: bool = False, value: Value | None = None) -> None:
        """Ends the time in which it is tried as a plain policy."""
        self.acting, self.temperature, self.entropy = True, temperature, entropy
        self.value = value.to(self.causal.device) if value is not None else None

    def forward(self, batch: Batch) -> Tensor:
        if not self.acting:
            return super().forward(batch)
        hidden = self.hidden(batch) if self.chunked_head or self.value is not None else None
        logprobs, entropies = self._distribution(batch, hidden)
        values = torch.zeros_like(logprobs) if self.value is None else self._values(batch, hidden)
        return torch.stack([logprobs, entropies, values], 1)

    def logprobs(self, batch: Batch) -> Tensor:
        """The first column alone, `(N,)`."""
        entropy, self.entropy = self.entropy, False
        try:
            return self._distribution(batch, self.hidden(batch) if self.chunked_head else None)[0]
        finally:
            self.entropy = entropy

    def _distribution(self, batch: Batch, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.chunked_head:
            assert hidden is not None
            if self.entropy:
                return token_logprobs_and_entropies(hidden, self.head_weight, batch.targets, self.temperature)
            logprobs = token_logprobs(hidden, self.head_weight, batch.targets, self.temperature)
            return logprobs, torch.zeros_like(logprobs)
        known = torch.log_softmax(self._own_logits(batch) / self.temperature, -1)
        logprobs = known.gather(1, batch.targets[:, None]).squeeze(1)
        return logprobs, -(known.exp() * known).sum(1) if self.entropy else torch.zeros_like(logprobs)

    def _values(self, batch: Batch, hidden: Tensor | None) -> Tensor:
        assert self.value is not None
        if self.value.adapter is not None:
            with roles.acting(self.model, self.value.adapter):
                hidden = self.hidden(batch)
        elif self.value.model is not None:
            with torch.autocast(batch.input_ids.device.type, self.dtype, enabled=self.value.autocast):
                states = self.value.model(batch.input_ids, **self._layout(batch)).last_hidden_state
            hidden = states.flatten(0, 1)[batch.predictors]
        values: Tensor = self.value(hidden)
        return values


def reference_of(actor: Actor) -> Reference:
    """The policy as it is now, for later: without its adapter, with a copy of it, or a copy of all weights."""
    if roles.is_adapted(actor.model):
        name = roles.keep_reference(actor.model)

        def adapted(batch: Batch) -> Tensor:
            with roles.acting(actor.model, name):
                return actor.logprobs(batch)

        return adapted
    frozen = Actor(copy.deepcopy(actor.model).to(actor.dtype).requires_grad_(False), actor.dtype, actor.pad_id)
    frozen.flat, frozen.share_prompts, frozen.chunked_head = actor.flat, actor.share_prompts, actor.chunked_head
    frozen.act(temperature=actor.temperature)
    return frozen.eval().logprobs
