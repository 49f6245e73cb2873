"""Warnings about a preference run that goes wrong while its loss looks well, each with its cause and said once."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

WINDOW = 20  # steps whose mean is looked at
CHANCE = 0.55  # accuracy below which pairs are told apart by luck
PATIENCE = 3 * WINDOW  # steps after which chance is no longer the beginning
LEAST_DROP = 0.01  # of the mean reward of chosen answers between two windows
LARGE_MARGIN = 20.0  # sigmoid(-20) = 2e-9: what is beyond it no longer moves the loss


class Watch(Protocol):
    """Looks at the figures of each step, yields what is to be said of them, and raises `Diverged` to end the run."""

    def look(self, step: int, metrics: dict[str, float]) -> Iterator[str]: ...


@dataclass
class Health:
    """Looks at the metrics of each step. It knows names of metrics, not stages."""

    steps: int = 0
    recent: dict[str, deque[float]] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def look(self, step: int, metrics: dict[str, float]) -> Iterator[str]:
        """What is to be said after this step."""
        self.steps += 1
        for name, value in metrics.items():
            self.recent.setdefault(name, deque(maxlen=2 * WINDOW)).append(value)
        for name, problem in (("chosen", self._displaced()), ("accuracy", self._chance()), ("margin", self._margin())):
            if problem and name not in self.said:
                self.said.add(name)
                yield problem

    def _mean(self, name: str, *, before: bool = False) -> float | None:
        """Of the last `WINDOW` steps, or of those before them; None where there are not that many."""
        values = list(self.recent.get(name, ()))
        if len(values) < (2 * WINDOW if before else WINDOW):
            return None
        values = values[:WINDOW] if before else values[-WINDOW:]
        return sum(values) / WINDOW

    def _displaced(self) -> str:
        now, earlier = self._mean("reward_chosen"), self._mean("reward_chosen", before=True)
        if now is None or earlier is None or "kl" not in self.recent or not now + LEAST_DROP < earlier < 0:
            return ""  # where nothing is measured against a reference, a reward is no log-ratio
        return (
            f"the chosen answers have become less likely than under the reference for {2 * WINDOW} steps (reward "
            f"{earlier:.3f}, then {now:.3f}): both answers are pushed down and something else rises (likelihood "
            "displacement); set objective.sft_weight: 1, raise objective.beta, or lower train.learning_rate"
        )

    def _chance(self) -> str:
        now = self._mean("accuracy")
        if now is None or self.steps < PATIENCE or now >= CHANCE:
            return ""
        return (
            f"accuracy {now:.2f} over {WINDOW} steps after {self.steps}: the pairs are not told apart; chosen and "
            "rejected may be swapped or too alike, or train.learning_rate is too low"
        )

    def _margin(self) -> str:
        now = self._mean("margin")
        if now is None or now <= LARGE_MARGIN:
            return ""
        advice = ", or raise objective.beta" if "kl" in self.recent else ""
        return (
            f"reward margin {now:.1f} over {WINDOW} steps: the pairs are learnt by heart; lower "
            f"train.learning_rate or num_train_epochs{advice}"
        )
