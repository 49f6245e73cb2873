"""Judges answers: a reward that fails is counted and named, the answer left out, and too many failures end the run."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunekit.errors import DataError, TunekitError
from tunekit.rollout.rewards.sources import Source
from tunekit.rollout.samples import Response

log = logging.getLogger("tunekit")

_SAID: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Scores:
    """values: of each source, NaN where it failed;  total: weighted sum;  valid: where none failed; each `(S,)`."""

    values: dict[str, NDArray[np.float64]]
    total: NDArray[np.float64]
    valid: NDArray[np.bool_]


def score(
    rewards: Sequence[Source],
    responses: Sequence[Response],
    *,
    poll: Callable[[], None] = lambda: None,
    limit: float = 0.05,
) -> Scores:
    """The rewards of S answers. Raises `DataError` where one fails on more than the share `limit`, or on all."""
    values = {}
    for source in rewards:
        found, problems = _judged(source, responses, poll)
        values[source.name] = found
        _say(source, problems, len(responses), limit)
    total = sum((source.weight * values[source.name] for source in rewards), np.zeros(len(responses)))
    return Scores(values, total, ~np.isnan(total))


def _judged(
    source: Source, responses: Sequence[Response], poll: Callable[[], None]
) -> tuple[NDArray[np.float64], list[tuple[str, str]]]:
    """The values, NaN where there is none, and of each failure the row and what happened."""
    if source.several is not None:
        given: Sequence[Any] = source.several(responses, poll)
    else:
        given = [_one(source, each, poll) for each in responses]
    values = np.full(len(responses), np.nan)
    problems = []
    for i, value in enumerate(given):
        if isinstance(value, Exception):
            problems.append((responses[i].prompt.source, f"{type(value).__name__}: {value}"))
        elif isinstance(value, Real | np.bool_) and math.isfinite(float(value)):
            values[i] = float(value)
        else:
            problems.append((responses[i].prompt.source, f"it gives {value!r}, and no finite number"))
    return values, problems


def _one(source: Source, response: Response, poll: Callable[[], None]) -> Any:
    poll()
    assert source.one is not None
    try:
        return source.one(response)
    except TunekitError:
        raise
    except Exception as error:  # whatever the user's own function does wrong
        return error


def _say(source: Source, problems: list[tuple[str, str]], count: int, limit: float) -> None:
    if not problems:
        return
    kinds = Counter(text for _, text in problems)
    row, text = problems[0]
    said = f"rewards: {source.name} failed on {len(problems)} of {count} answers; the first is to {row}: {text}"
    if len(problems) == count or len(problems) > limit * count:
        raise DataError(
            said,
            f"Mend the reward or the rows, or raise limits.reward_failures (now {limit:g}) to leave such answers out.",
        )
    for kind in kinds:
        if (source.name, kind) not in _SAID:
            _SAID.add((source.name, kind))
            log.warning("%s", said)
