"""Which rows make up which micro-batch of which optimizer step: a pure function of the seed.

Nothing here has state, so the position in the data is just the number of the step: a resumed run asks for the same step
and gets the same rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MicroBatch = tuple[int, ...]  # row numbers
Step = tuple[MicroBatch, ...]


@dataclass(frozen=True)
class Plan:
    """The order of training.

    lengths: tokens of each row;  batch_size: rows (or packs) of a micro-batch;  accumulation: micro-batches a step
    pack_to: tokens a packed row may hold, or None for one example a row
    epochs: may be fractional;  max_steps: overrides `epochs`;  sampling: "random" or "sequential"
    """

    lengths: tuple[int, ...]
    batch_size: int
    accumulation: int
    epochs: float
    max_steps: int | None
    seed: int
    sampling: str = "random"
    pack_to: int | None = None

    def steps(self, start: int = 0) -> Iterator[tuple[int, float, Step]]:
        """Yields (number of the step from 1, epochs done after it, its micro-batches) after step `start`."""
        done = 0
        for epoch in range(math.ceil(self.epochs) if self.max_steps is None else self.max_steps):
            steps = self._epoch(epoch)
            limit = len(steps)
            if self.max_steps is not None:
                limit = min(limit, self.max_steps - done)
            elif epoch + 1 > self.epochs:
                limit = self._part(limit)
            for i in range(max(0, start - done), limit):
                yield done + i + 1, epoch + (i + 1) / len(steps), steps[i]
            done += limit
            if done == self.max_steps:
                return

    @property
    def num_steps(self) -> int:
        if self.max_steps is not None:
            return self.max_steps
        whole = int(self.epochs)
        steps = sum(len(self._epoch(epoch)) for epoch in range(whole))
        return steps + (self._part(len(self._epoch(whole))) if self.epochs > whole else 0)

    def _part(self, steps: int) -> int:
        """How many of its `steps` a partial last epoch has: of 2.2 epochs a fifth, though 2.2 - 2 is over 0.2."""
        return max(1, math.ceil(round(steps * (self.epochs - int(self.epochs)), 6)))

    def longest(self, padded: bool) -> MicroBatch:
        """The micro-batch with the most tokens of the whole run, padding included where rows are `padded`."""

        def size(batch: MicroBatch) -> int:
            lengths = [self.lengths[row] for row in batch]
            return len(lengths) * max(lengths) if padded else sum(lengths)

        return max((batch for _, _, step in self.steps() for batch in step), key=size)

    @lru_cache(maxsize=4)  # noqa: B019  a plan lives as long as its run
    def _epoch(self, epoch: int) -> tuple[Step, ...]:
        order: Sequence[int] = range(len(self.lengths))
        if self.sampling == "random":
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths)).tolist()
        rows = [(row,) for row in order] if self.pack_to is None else pack(order, self.lengths, self.pack_to)
        batches = [sum(rows[i : i + self.batch_size], ()) for i in range(0, len(rows), self.batch_size)]
        size = self.accumulation
        return tuple(tuple(batches[i : i + size]) for i in range(0, len(batches), size))


def pack(order: Sequence[int], lengths: Sequence[int], capacity: int) -> list[MicroBatch]:
    """Puts whole rows, in `order`, each into the open pack with the least room that still holds it (best fit).

    A row longer than `capacity` gets a pack of its own: nothing is cut here. At most 64 packs are open at once, so that
    a pack holds rows that are near each other in the shuffled order and the cost stays linear.
    """
    packs: list[list[int]] = []
    rooms: dict[int, int] = {}  # open pack -> tokens left
    for row in order:
        fitting = [(room, index) for index, room in rooms.items() if room >= lengths[row]]
        if fitting:
            room, index = min(fitting)
        else:
            room, index = capacity, len(packs)
            packs.append([])
        packs[index].append(row)
        rooms[index] = room - lengths[row]
        if rooms[index] <= 0 or len(rooms) > 64:
            del rooms[min(rooms, key=rooms.__getitem__)]
    return [tuple(rows) for rows in packs]
