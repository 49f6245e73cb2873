"""`train.per_device_train_batch_size: auto`: how many rows of a step go through the model together.

The estimate of `tunekit plan` says it before the weights are loaded; the trial of the longest batch halves it where
that was too much. A step keeps its rows, and a run that goes on keeps what its checkpoint had.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tunekit.data.loader import Loader, PlannedLoader
from tunekit.data.stream import StreamLoader
from tunekit.errors import MemoryExceeded, RecipeError
from tunekit.models import memory
from tunekit.recipe.losses import ONLINE
from tunekit.recipe.schema import Recipe
from tunekit.rollout.loader import RolloutLoader
from tunekit.stages.assemble import MICRO_BATCHES
from tunekit.stages.base import Base
from tunekit.stages.plan_need import estimate
from tunekit.stages.rows import ALONE, Rows, micro_batches_of
from tunekit.train.engine import Engine
from tunekit.train.loop import try_longest_batch
from tunekit.train.optim import make_optimizer
from tunekit.train.training import Training

log = logging.getLogger("tunekit")

KEY = "train.per_device_train_batch_size"
MARGIN = 0.9  # of what is free: the estimate is within 10 % of what runs took (docs/plan.md)


def is_auto(recipe: Recipe) -> bool:
    return recipe.train.per_device_train_batch_size == "auto"


def readable(recipe: Recipe) -> Recipe:
    """The recipe with the least micro-batches where they are not settled yet: its rows are the same ones."""
    return with_batch(recipe, 1) if is_auto(recipe) else recipe


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
    recipe: Recipe, base: Base, engine: Engine, start: dict[str, Any] | None, read: Callable[[Recipe], Rows]
) -> Recipe:
    """The recipe with the size of its micro-batches; `auto` takes that of the checkpoint, or leaves it to the memory.

    start: of `find_start`;  read: gives the rows of a recipe. Raises `MemoryExceeded` where one row does not fit.
    """
    if not is_auto(recipe):
        return recipe
    count, limit = engine.world_size, memory.available(engine.device)
    if engine.device.type == "cpu":  # which the processes of a machine share
        limit = limit * recipe.distributed.nodes // count + memory.resident()

    def choose() -> int:
        if start is not None:
            kept = int(start["contract"][KEY])
            log.info("%s: auto: %d rows, as in the checkpoint", KEY, kept)
            return kept
        rows = read(readable(recipe))
        return choose_batch(recipe, base, rows, engine.device.type, int(MARGIN * limit), count)

    return with_batch(recipe, engine.ranks.from_main(choose), count)


def try_longest(recipe: Recipe, training: Training, *, halves: bool) -> Recipe:
    """The recipe as it runs: with `halves` smaller micro-batches are tried where the longest does not fit.

    Raises `MemoryExceeded` where none does.
    """
    settings = recipe.train

    def attempt(size: int) -> None:
        if size != settings.batch_size:
            training.policy.zero_grad()
            resize(training.loader, size)
            micro_batches = micro_batches_of(with_batch(recipe, size), ALONE)
            training.contract.update({KEY: size, MICRO_BATCHES: micro_batches})
        spare = make_optimizer(settings.optim, training.parameters, lr=0.0, weight_decay=settings.weight_decay)
        try_longest_batch(training, spare)

    if not halves:
        attempt(settings.batch_size)
        return recipe
    return with_batch(recipe, halved_until_it_fits(attempt, settings.batch_size, rows_of_step(recipe, 1)))


def resize(loader: Loader, batch: int) -> None:
    """Makes micro-batches of `batch` rows from now on, the rows of a step staying the same ones."""
    if isinstance(loader, PlannedLoader):
        rows = loader.plan.batch_size * loader.plan.micro_batches
        loader.plan = replace(loader.plan, batch_size=batch, micro_batches=rows // batch)
    elif isinstance(loader, StreamLoader):
        rows = loader.settings.batch_size * loader.settings.micro_batches
        loader.settings = replace(loader.settings, batch_size=batch, micro_batches=rows // batch)
    else:
        assert isinstance(loader, RolloutLoader)
        loader.batch_size = batch


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
