"""What a policy wrote, and who writes it: the protocol that the engines of rollouts have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tunekit.data.rows import Prompt
from tunekit.models.policy import Policy


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: from softmax(logits / temperature), cut to `top_k` (0: off) and to the nucleus `top_p`.

    ends: the ids that end an answer
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    ends: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Completion:
    """One sampled answer.

    ids:       `(T,)`, T >= 1, with the id that ended it where the model ended it itself (`ended`)
    logprobs:  `(T,)` of each in nats under the distribution it was drawn from; None where the engine does not say
    entropies: `(T,)` in nats, of the distribution each was drawn from; None likewise
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32] | None
    ended: bool
    entropies: NDArray[np.float32] | None = None


class Sampler(Protocol):
    """An engine. From `sync` on it samples from the policy as it is then.

    in_process: each of several processes has one, else the first alone asks
    """

    in_process: bool

    def sync(self, policy: Policy, step: int) -> None: ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        num_generations: int,
        sampling: Sampling,
        seed: int,
        poll: Callable[[], None] = lambda: None,
        numbers: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """Of each of the prompts (ids) `num_generations` answers, in order; equal for an equal seed and number.

        numbers: of the prompts, where others are asked elsewhere (None: from 0)
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Response:
    """What a reward looks at.

    text: the answer without special tokens;  rendered: prompt and answer with them, as a reward model reads it
    """

    prompt: Prompt
    text: str
    num_tokens: int
    ended: bool
    rendered: str
