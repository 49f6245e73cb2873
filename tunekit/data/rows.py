"""A row of data: what was read (`Conversation`, `Text`) and what is trained (`Tokens`)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Conversation:
    """Messages in the chat form: `role`, `content`, and `"train": False` on a message that is not to be learnt."""

    messages: tuple[dict[str, Any], ...]
    source: str


@dataclass(frozen=True)
class Text:
    """Raw text that no chat template touches; a row that is trained whole has the prompt `""`."""

    prompt: str
    completion: str
    source: str


@dataclass(frozen=True, eq=False)
class Tokens:
    """A rendered row: `ids` int32 (T,) and `trained` bool (T,), true where the token is a target of the loss."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    source: str
