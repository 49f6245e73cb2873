"""A row of data: what was read, what it means (one type for each kind of training), and what is trained (`Tokens`).

`source` is the place of a row as a person would name it: "a.jsonl:12", "a.json[3]", "org/set[train][7]".
`tools` is the JSON text of a list of tool schemas, and the arguments of a tool call may be JSON text too: both are
parsed only when they are rendered, so that no table unifies their keys.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Messages: TypeAlias = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Conversation:
    """Messages in the chat form: `role`, `content`, and `"train": False` on a message that is not to be learnt."""

    messages: Messages
    source: str
    tools: str | None = None


@dataclass(frozen=True)
class Text:
    """Raw text that no chat template touches; a row that is trained whole has the prompt `""`."""

    prompt: str
    completion: str
    source: str


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, all three raw text or all three messages; `margin`: how much better is `chosen`."""

    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages
    source: str
    tools: str | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Unpaired:
    """One answer and whether it is wanted."""

    prompt: str | Messages
    completion: str | Messages
    label: bool
    source: str
    tools: str | None = None


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: raw text, or the messages before an answer; `answer`: what the data says there, if so."""

    prompt: str | Messages
    source: str
    tools: str | None = None
    answer: str | None = None


AnyRow: TypeAlias = Conversation | Text | Preference | Unpaired | Prompt


class Refused(Exception):
    """Why a row cannot be used, and what to do about it: it becomes the row's `Rejected`."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used: why, what to do about it, and what was read (the line itself where it is no JSON)."""

    source: str
    reason: str
    row: Any
    fix: str = ""


@dataclass(frozen=True, eq=False)
class Tokens:
    """A rendered row: `ids` int32 (T,) and `trained` bool (T,), true where the token is a target of the loss.

    `part` is the number of the source in `data.train` that it came from.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    source: str
    part: int = 0

    @property
    def answers(self) -> tuple["Tokens", ...]:
        return (self,)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two answers: the first `prompt_length` ids are the same in both, and none of them is trained.

    reference: what the reference model gives each, summed log-probabilities in nats;  margin: how much better `chosen`
    is, where the data says so
    """

    chosen: Tokens
    rejected: Tokens
    prompt_length: int
    reference: tuple[float, float] | None = None
    margin: float = 0.0

    @property
    def answers(self) -> tuple[Tokens, ...]:
        return (self.chosen, self.rejected)

    @property
    def part(self) -> int:
        return self.chosen.part


@dataclass(frozen=True, eq=False)
class Labelled:
    """One answer and whether it is wanted.

    reference: what the reference model gives it, summed log-probabilities in nats;  mismatched: its prompt with the
    answer of another row, and what the reference gives that: from many of these the KL divergence is estimated
    """

    tokens: Tokens
    label: bool
    reference: tuple[float] | None = None
    mismatched: "Labelled | None" = None

    @property
    def answers(self) -> tuple[Tokens, ...]:
        return (self.tokens,)

    @property
    def part(self) -> int:
        return self.tokens.part


@dataclass(frozen=True, eq=False)
class Sampled:
    """An answer that the policy wrote: it alone is trained, its T tokens after the first `prompt_length` ids.

    group: number of its prompt in the rollout;  weight: what it counts in the divisor of the loss, an integer
    old, reference: log-probabilities `(T,)` in nats at the time of the rollout, under the policy and the reference
    advantages `(T,)`;  values, returns: `(T,)` at the time of the rollout, where a value function is trained
    """

    tokens: Tokens
    prompt_length: int
    group: int = 0
    weight: int = 1
    old: NDArray[np.float32] | None = None
    reference: NDArray[np.float32] | None = None
    advantages: NDArray[np.float32] | None = None
    values: NDArray[np.float32] | None = None
    returns: NDArray[np.float32] | None = None

    @property
    def answers(self) -> tuple[Tokens, ...]:
        return (self.tokens,)

    @property
    def part(self) -> int:
        return self.tokens.part


Example: TypeAlias = Tokens | Pair | Labelled | Sampled
