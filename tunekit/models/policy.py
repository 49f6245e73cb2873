"""The policy: a batch goes in, the log-probabilities of its trained tokens come out.

The vocabulary projection runs only at positions that predict a trained token, in chunks (ops/logprobs.py). Two facts
about the model are not assumed but tried at start (`prove`): that examples packed into one row cannot see each other,
and that backbone, head and softmax give the log-probabilities of the model's own forward pass. Where the first fails,
batches are padded; where the second fails (soft-capped logits, a head with an adapter), the model's own head is used.

Axes: T tokens, N trained tokens, E hidden width, V vocabulary.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunekit.data.batch import Batch, flat_batch, padded_batch
from tunekit.data.rows import Example, Pair, Tokens
from tunekit.errors import Diverged
from tunekit.models.attention import SEGMENTS, segment_inputs
from tunekit.ops.logprobs import token_logprobs

log = logging.getLogger("tunekit")


class Policy(nn.Module):
    """Wraps `model` (a causal language model, with or without adapters); `dtype` is what matrix products run in."""

    generates = True

    def __init__(self, model: nn.Module, dtype: torch.dtype, pad_id: int) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.pad_id = pad_id
        self.flat = self.causal.config._attn_implementation == SEGMENTS
        self.share_prompts = True
        # A model that is trained whole has fp32 weights, cast for each product; a base under an adapter is in `dtype`.
        self.autocast = isinstance(model, PreTrainedModel) and model.dtype != dtype
        self.chunked_head = self._has_plain_head()

    def _has_plain_head(self) -> bool:
        head = self.causal.get_output_embeddings()
        # Not left to `prove`: bf16 rounds by more than a cap bends small logits, and a bias may begin as zero.
        capped = getattr(self.causal.config.get_text_config(), "final_logit_softcapping", None) is not None
        return type(head) is nn.Linear and head.bias is None and not capped

    @property
    def causal(self) -> PreTrainedModel:
        """The transformers model, below peft's wrapper if there is one."""
        return self.model if isinstance(self.model, PreTrainedModel) else self.model.get_base_model()  # type: ignore[operator]

    def batch(self, rows: Sequence[Example]) -> Batch:
        """Lays `rows` out the way this model takes them, on its device."""
        if self.flat:
            return flat_batch(rows, self.pad_id, share_prompts=self.share_prompts).to(self.causal.device)
        return padded_batch(rows, self.pad_id).to(self.causal.device)

    def forward(self, batch: Batch) -> Tensor:
        """Log-probabilities, in nats and fp32, of the batch's targets: `(N,)`."""
        if not self.chunked_head:
            return torch.log_softmax(self._own_logits(batch), -1).gather(1, batch.targets[:, None]).squeeze(1)
        return token_logprobs(self.hidden(batch), self.head_weight, batch.targets)

    def hidden(self, batch: Batch) -> Tensor:
        """What the backbone gives where a trained token is predicted, `(N, E)`."""
        return self.states(batch)[batch.predictors]

    def states(self, batch: Batch) -> Tensor:
        """What the backbone gives at every position of the flattened `input_ids`, `(T, E)`."""
        with torch.autocast(batch.input_ids.device.type, self.dtype, enabled=self.autocast):
            states: Tensor = self.causal.base_model(batch.input_ids, **self._layout(batch)).last_hidden_state
        return states.flatten(0, 1)

    @property
    def head_weight(self) -> Tensor:
        """`(V, E)`"""
        return self.causal.get_output_embeddings().weight.to(self.dtype)

    def _layout(self, batch: Batch) -> dict[str, Any]:
        if batch.segments is not None:
            return segment_inputs(batch.segments, batch.input_ids.device, batch.prompts)
        return {"attention_mask": batch.attention_mask, "use_cache": False}

    def _own_logits(self, batch: Batch) -> Tensor:
        """`(N, V)` in fp32 from the model's own head; of a flat row, one sequence, only the predicting positions."""
        with torch.autocast(batch.input_ids.device.type, self.dtype, enabled=self.autocast):
            if batch.segments is not None:
                output = self.causal(batch.input_ids, logits_to_keep=batch.predictors, **self._layout(batch))
                return output.logits[0].float()
            return self.causal(batch.input_ids, **self._layout(batch)).logits.flatten(0, 1)[batch.predictors].float()

    def prove(self, rows: Sequence[Tokens], *, pairs: bool = False) -> None:
        """Tries the flat layout and the chunked head on two examples, and says aloud what it falls back to.

        With `pairs` also that two answers may share a prompt.

        Raises `Diverged` for a model whose weights are broken before any training.
        """
        examples = [_probe_of(row) for row in rows[:2]]
        self.eval()
        with torch.no_grad():
            if self.flat and (problem := self._flat_problem(examples)):
                log.info("packed rows are not safe on this model (%s): batches are padded", problem)
                self.flat = False
                self.causal.set_attn_implementation("sdpa" if self.causal._supports_sdpa else "eager")
            if pairs and self.flat and (problem := self._shared_problem(*examples)):
                log.info("a prompt cannot be shared by two answers on this model (%s): it is computed twice", problem)
                self.share_prompts = False
            if self.chunked_head and not _close(self(self.batch(examples)), self._apart(examples), self.dtype):
                log.info("the head of this model is more than a matrix product: its own forward pass is used")
                self.chunked_head = False
            if not bool(torch.isfinite(self(self.batch(examples))).all()):
                raise Diverged("the model gives log-probabilities that are not finite before any training")

    def _outputs(self, answer: Tokens) -> int:
        """How many numbers the forward pass gives for an answer."""
        return int(answer.trained.sum())

    def _apart(self, rows: Sequence[Tokens]) -> Tensor:
        return torch.cat([self._reference(row) for row in rows])

    def _reference(self, row: Tokens) -> Tensor:
        """What the model's own forward pass, alone on one example, says of its trained tokens."""
        batch = padded_batch([row], self.pad_id).to(self.causal.device)
        with torch.autocast(batch.input_ids.device.type, self.dtype, enabled=self.autocast):
            logits = self.causal(batch.input_ids, use_cache=False).logits[0, batch.predictors]
        return torch.log_softmax(logits.float(), -1).gather(1, batch.targets[:, None]).squeeze(1)

    def _flat_problem(self, examples: Sequence[Tokens]) -> str:
        """Why two examples in one row are not what they are apart, or ''."""
        first, second = examples
        other = Tokens(np.roll(first.ids, 1), first.trained, first.source)
        return self._problem([first, second], [other, second], second)

    def _shared_problem(self, first: Tokens, second: Tokens) -> str:
        """Why two answers to one prompt, the first half of `first`, are not what they are apart, or ''."""
        prompt = first.ids[: len(first.ids) // 2]
        chosen, rejected, other = (
            _answered(prompt, own) for own in (first.ids[len(prompt) :], second.ids, np.roll(second.ids, 1))
        )
        pairs = [Pair(each, rejected, len(prompt)) for each in (chosen, other)]
        return self._problem(pairs[:1], pairs[1:], rejected)

    def _problem(self, rows: Sequence[Example], disturbed: Sequence[Example], last: Tokens) -> str:
        """Why `rows` laid out flat are not what their answers are apart, or ''.

        Isolation is exact: `last`, the last answer of both, must not move by one bit where another stands beside it.
        Equality with the answers apart is up to rounding, because products of other shapes round differently.
        """
        chunked, self.chunked_head = self.chunked_head, False
        try:
            apart = self._apart([answer for row in rows for answer in row.answers])
            packed, moved = self(self.batch(rows)), self(self.batch(disturbed))
        except (NotImplementedError, TypeError, RuntimeError, ValueError, IndexError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            self.chunked_head = chunked
        count = self._outputs(last)
        if not torch.equal(packed[-count:], moved[-count:]):
            return "one example sees the other"
        return "" if _close(packed, apart, self.dtype) else "log-probabilities differ from those apart"


def _probe_of(row: Tokens) -> Tokens:
    """The first 32 tokens of a row, all of them scored."""
    ids = row.ids[:32]
    return Tokens(ids, np.arange(len(ids)) > 0, row.source)


def _answered(prompt: NDArray[np.int32], ids: NDArray[np.int32]) -> Tokens:
    return Tokens(np.concatenate([prompt, ids]), np.arange(len(prompt) + len(ids)) >= len(prompt), "")


def _close(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Equal up to rounding: the mean difference in nats. On a real 30-layer model bf16 rounding alone moves it by 0.06,
    an example that sees another by 0.8 to 5.
    """
    bound = 1e-3 if dtype == torch.float32 else 0.2
    return bool((ours - theirs).abs().mean() < bound)
