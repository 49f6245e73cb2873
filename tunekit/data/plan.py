"""Which rows make up which micro-batch of which optimizer step: a pure function of the seed.

Nothing here has state, so the position in the data is just the number of the step: a resumed run asks for the same step
and gets the same rows. Orders are arrays of row numbers and not objects, so that a plan for millions of rows is small.
"""

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MicroBatch = tuple[int, ...]  # row numbers
Step = tuple[MicroBatch, ...]


class Mixture(NamedTuple):
    """Sources mixed by trained tokens: of each row its source (R,) and trained tokens (R,); the shares (P,)."""

    parts: NDArray[np.int64]
    trained: NDArray[np.int64]
    shares: tuple[float, ...]


class _Epoch(NamedTuple):
    """Row numbers in order; micro-batch m is `order[starts[m] : starts[m + 1]]`."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Plan:
    """The order of training.

    lengths: tokens of each row;  batch_size: rows (or packs) of a micro-batch;  micro_batches: of a step, on all ranks
    pack_to: tokens a packed row may hold, or None for one example a row
    epochs: may be fractional;  max_steps: overrides `epochs`;  sampling: "random" or "sequential"
    mixture: an epoch then has as many trained tokens as all rows together, in the shares that it says
    rank, world_size: the micro-batches of a step are dealt out to the processes in turn; the steps are the same ones
    """

    lengths: Sequence[int] | NDArray[np.int64]
    batch_size: int
    micro_batches: int
    epochs: float
    max_steps: int | None
    seed: int
    sampling: str = "random"
    pack_to: int | None = None
    mixture: Mixture | None = None
    rank: int = 0
    world_size: int = 1

    def steps(self, start: int = 0) -> Iterator[tuple[int, float, Step]]:
        """Yields (number of the step from 1, epochs done after it, its micro-batches) after step `start`."""
        done = 0
        for number, epoch, limit in self._epochs():
            total = self._steps_in(epoch)
            for i in range(max(0, start - done), limit):
                yield done + i + 1, number + (i + 1) / total, self._step(epoch, i)
            done += limit

    @property
    def num_steps(self) -> int:
        return self.max_steps if self.max_steps is not None else sum(limit for _, _, limit in self._epochs())

    def longest(self, padded: bool) -> MicroBatch:
        """The micro-batch with the most tokens of the whole run, padding included where rows are `padded`."""
        best, found = -1, ()
        for _, (order, starts), limit in self._epochs():
            count = min(len(starts) - 1, limit * self.micro_batches)
            lengths = np.asarray(self.lengths)[order[: starts[count]]]
            size = np.maximum if padded else np.add
            sizes = size.reduceat(lengths, starts[:count]) * (np.diff(starts[: count + 1]) if padded else 1)
            largest = int(sizes.argmax())
            if sizes[largest] > best:
                best = int(sizes[largest])
                found = tuple(order[starts[largest] : starts[largest + 1]].tolist())
        return found

    def trained_by_part(self) -> list[int]:
        """How many trained tokens of each source of the mixture the whole run has."""
        assert self.mixture is not None
        totals = np.zeros(len(self.mixture.shares))
        for _, (order, starts), limit in self._epochs():
            rows = order[: starts[min(len(starts) - 1, limit * self.micro_batches)]]
            totals += np.bincount(self.mixture.parts[rows], self.mixture.trained[rows], len(totals))
        return [int(total) for total in totals]

    def _steps_in(self, epoch: _Epoch) -> int:
        return math.ceil((len(epoch.starts) - 1) / self.micro_batches)

    def _step(self, epoch: _Epoch, i: int) -> Step:
        order, starts = epoch
        last = min((i + 1) * self.micro_batches, len(starts) - 1)
        mine = range(i * self.micro_batches + self.rank, last, self.world_size)
        return tuple(tuple(order[starts[m] : starts[m + 1]].tolist()) for m in mine)

    def _epochs(self) -> Iterator[tuple[int, _Epoch, int]]:
        """(its number from 0, the epoch, how many of its steps are made)."""
        done = 0
        for number in range(math.ceil(self.epochs) if self.max_steps is None else self.max_steps):
            epoch = self._epoch(number)
            limit = total = self._steps_in(epoch)
            if self.max_steps is not None:
                limit = min(total, self.max_steps - done)
            elif number + 1 > self.epochs:
                limit = self._part(total)
            yield number, epoch, limit
            done += limit
            if done == self.max_steps:
                return

    def _part(self, steps: int) -> int:
        """How many of its `steps` a partial last epoch has: of 2.2 epochs a fifth, though 2.2 - 2 is over 0.2."""
        return max(1, math.ceil(round(steps * (self.epochs - int(self.epochs)), 6)))

    @lru_cache(maxsize=4)  # noqa: B019  a plan lives as long as its run
    def _epoch(self, number: int) -> _Epoch:
        order = self._order(number)
        starts = np.arange(0, len(order), self.batch_size)
        if self.pack_to is not None:
            packs = pack(order, self.lengths, self.pack_to)
            order = np.fromiter((row for rows in packs for row in rows), np.int64)
            starts = np.cumsum([0, *map(len, packs)])[:-1][:: self.batch_size]
        return _Epoch(order, np.append(starts, len(order)))

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self.mixture is None:
            rows = np.arange(len(self.lengths))
        else:
            rows = mix(self.mixture, epoch, self.seed if self.sampling == "random" else None)
        if self.sampling == "random":
            rows = np.random.default_rng([self.seed, epoch]).permutation(rows)
        return rows


def mix(mixture: Mixture, epoch: int, seed: int | None) -> NDArray[np.int64]:
    """The rows of an epoch that has as many trained tokens as all rows, spread evenly, in the shares of `mixture`.

    Each source is an endless sequence of passes over its rows, shuffled anew in each with `seed`; an epoch takes the
    next stretch of it. So no row comes a second time before each other row of its source has come, in any epoch.
    """
    total, weight = int(mixture.trained.sum()), sum(mixture.shares)
    chosen, places = [], []
    for part, share in enumerate(mixture.shares):
        own = np.flatnonzero(mixture.parts == part)
        size = int(mixture.trained[own].sum())
        begin, end = (math.floor(total * share / weight * number) for number in (epoch, epoch + 1))
        for turn in range(begin // size, -(-end // size)):
            rows = own if seed is None else np.random.default_rng([seed, part, turn]).permutation(own)
            trained = mixture.trained[rows]
            starts = turn * size + np.cumsum(trained) - trained
            inside = (starts >= begin) & (starts < end)
            chosen.append(rows[inside])
            places.append((starts[inside] - begin) / (end - begin))
    return np.concatenate(chosen)[np.argsort(np.concatenate(places), kind="stable")]


def pack(
    order: Sequence[int] | NDArray[np.int64], lengths: Sequence[int] | NDArray[np.int64], capacity: int
) -> list[MicroBatch]:
    """Puts whole rows, in `order`, each into the open pack with the least room that still holds it (best fit).

    A row longer than `capacity` gets a pack of its own: nothing is cut here. At most 64 packs are open at once, so that
    a pack holds rows that are near each other in the shuffled order and the cost stays linear.
    """
    packs: list[list[int]] = []
    open_packs: list[tuple[int, int]] = []  # (tokens left, number of the pack), sorted
    for row in order:
        length = int(lengths[row])
        fitting = bisect.bisect_left(open_packs, (length, -1))
        if fitting < len(open_packs):
            room, number = open_packs.pop(fitting)
        else:
            room, number = capacity, len(packs)
            packs.append([])
        packs[number].append(int(row))
        if room > length:
            bisect.insort(open_packs, (room - length, number))
            if len(open_packs) > 64:
                del open_packs[0]
    return [tuple(rows) for rows in packs]
