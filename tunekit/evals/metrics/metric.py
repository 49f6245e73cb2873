"""What a metric is: a function of answered items, under a name, with the range and the interval that go with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tunekit.evals.statistics import Better

ItemFunction: TypeAlias = Callable[["Answered"], float | None]
SetFunction: TypeAlias = Callable[[Sequence["Answered"]], float]


@dataclass(frozen=True)
class Answered:
    """An item of a task and what the model answered.

    prediction: the answer, after extraction (generation), or the text of the choice taken (multiple choice)
    references: the accepted answers;  completion: what was generated, whole;  row: the row of the data
    group: the group that the task puts the item in;  samples: further answers to the same item (after extraction)
    """

    prediction: str
    references: tuple[str, ...] = ()
    completion: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metric:
    """`of_item` scores one answer (None: it does not count) and the score is the mean; `of_set` scores all together.

    `parts` are the values that an `of_set` is the mean of, one for each group of answers that belong together: the
    interval is then that of their mean, as answers of one group say little that is new.
    """

    name: str
    of_item: ItemFunction | None = None
    of_set: SetFunction | None = None
    parts: Callable[[Sequence["Answered"]], list[float]] | None = None
    better: Better = "higher"


METRICS: dict[str, Metric] = {}


def item_metric(name: str, *, better: Better = "higher") -> Callable[[ItemFunction], ItemFunction]:
    """Registers a function of one answer under `name`; the score of a task is its mean."""

    def register(function: ItemFunction) -> ItemFunction:
        METRICS[name] = Metric(name, of_item=function, better=better)
        return function

    return register


def set_metric(
    name: str,
    *,
    better: Better = "higher",
    parts: Callable[[Sequence[Answered]], list[float]] | None = None,
) -> Callable[[SetFunction], SetFunction]:
    """Registers a function of all answers together under `name`, such as a correlation; `parts` as in `Metric`."""

    def register(function: SetFunction) -> SetFunction:
        METRICS[name] = Metric(name, of_set=function, parts=parts, better=better)
        return function

    return register
