"""Judges answers: a reward that fails is counted and named, the answer left out, and too many failures end the run."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunekit.errors import DataError, TunekitError
from tunekit.rollout.rewards.sources import Source
from tunekit.rollout.samples import Response

log = logging.getLogger("tunekit")

# Failures that are too few to end a run, whatever share of a small rollout they are; not where the limit is 0.
FEW = 2
NAMED = 3  # rows that a warning names
MAX_SHOWN = 200  # characters of an error


@dataclass(frozen=True)
class Scores:
    """values: of each source, NaN where it failed;  total: weighted sum;  valid: where none failed; each `(S,)`."""

    values: dict[str, NDArray[np.float64]]
    total: NDArray[np.float64]
    valid: NDArray[np.bool_]


class Problem(NamedTuple):
    """A failure: the row, its kind (of which there is one warning), and what happened."""

    row: str
    kind: str
    text: str


def score(
    rewards: Sequence[Source],
    responses: Sequence[Response],
    *,
    poll: Callable[[], None] = lambda: None,
    limit: float = 0.05,
) -> Scores:
    """The rewards of S answers.

    Raises `DataError` where one fails on all of them, or, over the last calls (see `Record`), on more than the share
    `limit` and on more than `FEW`.
    """
    return weighed(rewards, judged(rewards, responses, poll), limit)


def judged(
    rewards: Sequence[Source], responses: Sequence[Response], poll: Callable[[], None] = lambda: None
) -> list[dict[str, float | Problem]]:
    """What each source says of each of the answers: a number, or how it failed."""
    found: list[dict[str, float | Problem]] = [{} for _ in responses]
    for source in rewards:
        for verdicts, verdict in zip(found, _judged(source, responses, poll), strict=True):
            verdicts[source.name] = verdict
    return found


def weighed(rewards: Sequence[Source], verdicts: Sequence[dict[str, float | Problem]], limit: float = 0.05) -> Scores:
    """The scores of S answers from what `judged` gave, of several processes put together. Raises as `score` does."""
    values = {}
    for source in rewards:
        given = [each[source.name] for each in verdicts]
        problems = [each for each in given if isinstance(each, Problem)]
        source.record.add(len(problems), len(given))
        _stop(source, problems, len(given), limit)
        _warn(source, problems, len(given))
        values[source.name] = np.array([np.nan if isinstance(each, Problem) else each for each in given])
    total = np.sum([source.weight * values[source.name] for source in rewards], axis=0)
    return Scores(values, total, ~np.isnan(total))


def _judged(source: Source, responses: Sequence[Response], poll: Callable[[], None]) -> Iterator[float | Problem]:
    if source.several is not None:
        given: Sequence[Any] = source.several(responses, poll)
    else:
        given = [_one(source, each, poll) for each in responses]
    for response, value in zip(responses, given, strict=True):
        row = response.prompt.source
        if isinstance(value, BaseException):
            kind = type(value).__name__
            yield Problem(row, kind, _short(f"{kind}: {value}"))
        elif (number := _finite(value)) is not None:
            yield number
        else:
            yield Problem(row, "no number", _short(f"it gives {value!r}, and no finite number"))


def _one(source: Source, response: Response, poll: Callable[[], None]) -> Any:
    poll()
    assert source.one is not None
    try:
        return source.one(response)
    except TunekitError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's own function does wrong; Ctrl-C is none of that
        return error


def _finite(value: Any) -> float | None:
    if not isinstance(value, Real | np.bool_):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None
    return number if math.isfinite(number) else None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _stop(source: Source, problems: Sequence[Problem], count: int, limit: float) -> None:
    failed, seen = source.record.failed, source.record.seen
    if problems and len(problems) == count:
        share = f"{count} of {count} answers"
    elif problems and failed > limit * seen and (failed > FEW or limit == 0):
        share = f"{failed} of {seen} answers"
    else:
        return
    raise DataError(
        f"rewards: {source.name} failed on {share}; the first is to {problems[0].row}: {problems[0].text}",
        f"Mend the reward or the rows, or raise limits.reward_failures (now {limit:g}) to leave such answers out.",
    )


def _warn(source: Source, problems: Sequence[Problem], count: int) -> None:
    """Names the first failures of each kind, once in a run."""
    for kind in dict.fromkeys(each.kind for each in problems):
        if kind in source.record.warned:
            continue
        source.record.warned.add(kind)
        (first, *others) = (each for each in problems if each.kind == kind)
        log.warning(
            "rewards: %s failed on %d of %d answers; the first is to %s: %s%s; such answers are left out",
            source.name,
            1 + len(others),
            count,
            first.row,
            first.text,
            "".join(f"; {each.row}: {each.text}" for each in others[: NAMED - 1]),
        )
