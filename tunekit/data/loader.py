"""What the training loop asks for rows: the next step's micro-batches, where it stands, the largest batch to come."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from tunekit.data.plan import Plan
from tunekit.data.rows import Example


class LoadedStep(NamedTuple):
    """Optimizer step `number` (from 1): its micro-batches, and the epochs done after it (None: not known).

    gauges: figures of how its rows came about
    """

    number: int
    micro_batches: Sequence[Sequence[Example]]
    epoch: float | None
    ends_epoch: bool
    gauges: dict[str, float] = {}  # noqa: RUF012  never changed


class Loader(Protocol):
    """`state_dict` is what `steps` needs, beside the number of the last step, to go on from there.

    `terminators` are the ids that end the answers read so far; `report` is what is known of the rows only once they
    are read, and says it. `poll` is called where a step takes long to come; it may raise.
    """

    @property
    def num_steps(self) -> int: ...

    @property
    def terminators(self) -> frozenset[int]: ...

    def steps(self, start: int, poll: Callable[[], None]) -> Iterator[LoadedStep]: ...

    def longest(self, padded: bool) -> Sequence[Example]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def report(self) -> dict[str, Any]: ...


class PlannedLoader:
    """Rows that are all there before step 1, in the order of a plan: the number of a step is the whole state."""

    def __init__(self, rows: Sequence[Example], plan: Plan, terminators: frozenset[int] = frozenset()) -> None:
        self.rows, self.plan, self.terminators = rows, plan, terminators

    @property
    def num_steps(self) -> int:
        return self.plan.num_steps

    def steps(self, start: int, poll: Callable[[], None] = lambda: None) -> Iterator[LoadedStep]:
        """The steps after `start`."""
        for number, epoch, micro_batches in self.plan.steps(start):
            rows = [[self.rows[row] for row in batch] for batch in micro_batches]
            yield LoadedStep(number, rows, epoch, float(epoch).is_integer())

    def longest(self, padded: bool) -> Sequence[Example]:
        """The micro-batch with the most tokens of the whole run, padding included where rows are `padded`."""
        return [self.rows[row] for row in self.plan.longest(padded)]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state

    def report(self) -> dict[str, Any]:
        return {}
