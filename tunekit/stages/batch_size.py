"""`train.per_device_train_batch_size: auto`: how many rows of a step go through the model together.

The estimate of `tunekit plan` says it before the weights are loaded; the trial of the longest batch halves it where
that was too much. A step keeps its rows, and a run that goes on keeps what its checkpoint had.
"""

import logging
from collections.abc import Callable
from typing import Any

from tunekit.errors import MemoryExceeded, RecipeError
from tunekit.recipe.losses import ONLINE
from tunekit.recipe.schema import Recipe
from tunekit.stages.base import Base
from tunekit.stages.plan_need import estimate
from tunekit.stages.rows import Rows

log = logging.getLogger("tunekit")

KEY = "train.per_device_train_batch_size"
MARGIN = 0.9  # of what is free: the estimate is within 10 % of what runs took (docs/plan.md)


def is_auto(recipe: Recipe) -> bool:
    return recipe.train.per_device_train_batch_size == "auto"


def rows_of_step(recipe: Recipe, count: int) -> int:
    """Of `count` processes together; of online training the answers that an optimizer step is made of.

    Raises `RecipeError` where the processes cannot share them evenly.
    """
    if recipe.stage in ONLINE:
        answers = recipe.rollout.num_prompts * (recipe.rollout.num_generations or 1)
        return max(count, answers // (recipe.objective.num_mini_batches or 1) // count * count)
    rows = recipe.train.global_batch_size
    assert rows is not None  # derived
    if rows % count:
        raise RecipeError(
            f"train.global_batch_size: {rows} is not a multiple of the {count} processes",
            f"Set {rows + -rows % count}.",
        )
    return rows


def with_batch(recipe: Recipe, batch: int, count: int = 1) -> Recipe:
    """The recipe with micro-batches of `batch` rows in `count` processes, and as many rows in a step."""
    values: dict[str, Any] = {"per_device_train_batch_size": batch}
    if recipe.stage not in ONLINE:
        rows = rows_of_step(recipe, count)
        values |= {"global_batch_size": rows, "gradient_accumulation_steps": rows // (batch * count)}
    changed: dict[str, Any] = {"train": recipe.train.model_copy(update=values)}
    return recipe.model_copy(update=changed)


def sizes(rows: int, count: int = 1) -> list[int]:
    """The sizes of micro-batches that divide a step of `rows` rows over `count` processes, largest first."""
    return [size for size in range(rows // count, 0, -1) if rows % (size * count) == 0]


def choose_batch(recipe: Recipe, base: Base, rows: Rows, device: str, limit: int, count: int = 1) -> int:
    """The largest of `sizes` that the estimate says fits into `limit` bytes of each of `count` processes.

    Raises `MemoryExceeded` where one row does not fit.
    """
    peak, size = 0, 1
    for size in sizes(rows_of_step(recipe, count), count):
        peak = estimate(with_batch(recipe, size, count), base, rows, device, count).peak
        if peak <= limit:
            log.info("%s: auto: %d rows take %.2f GiB of %.2f on %s", KEY, size, peak / 2**30, limit / 2**30, device)
            return size
    raise MemoryExceeded(
        f"{KEY}: auto: {size} row takes {peak / 2**30:.2f} GiB, and {device} has {limit / 2**30:.2f}",
        "tunekit plan says what makes it fit.",
    )


def settled(
    recipe: Recipe, base: Base, read: Callable[[], Rows], device: str, limit: int, count: int, kept: int | None = None
) -> int:
    """Rows of a micro-batch of a run; `kept` is what its checkpoint has, `read` gives the rows of the recipe."""
    if kept is not None:
        log.info("%s: auto: %d rows, as in the checkpoint", KEY, kept)
        return kept
    return choose_batch(recipe, base, read(), device, int(MARGIN * limit), count)


def halved_until_it_fits(attempt: Callable[[int], None], batch: int, rows: int) -> int:
    """The size of micro-batches, from `batch` down, with which `attempt` does not raise `MemoryExceeded`.

    rows: of a step of this one process. What the smallest of them raises is raised.
    """
    while True:
        try:
            attempt(batch)
            return batch
        except MemoryExceeded:
            smaller = [size for size in sizes(rows) if 2 * size <= batch]
            if not smaller:
                raise
            log.warning("%s: auto: %d rows do not fit: trying %d", KEY, batch, smaller[0])
            batch = smaller[0]
