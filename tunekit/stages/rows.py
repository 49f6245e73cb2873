"""The rows of a run, and what the `data` section of a recipe asks for in the terms of the data layer."""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunekit.data import sources
from tunekit.data.examples import Examples
from tunekit.data.loader import Loader
from tunekit.data.pairs import best_answer
from tunekit.data.prepare import Prepared, fingerprint, prepare
from tunekit.data.prepare import Rows as TokenRows
from tunekit.data.prompts import prompts_of
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Conversation, Prompt, Tokens
from tunekit.data.tokenise import Reading
from tunekit.errors import RecipeError
from tunekit.models.load import context_length
from tunekit.recipe.data import Source
from tunekit.recipe.losses import ONLINE
from tunekit.recipe.schema import Recipe
from tunekit.stages.base import Base

log = logging.getLogger("tunekit")

REJECTED = "rejected.jsonl"
SERVED = 8  # conversations whose rendering by the saved tokenizer is compared
Datasets = Mapping[str, Iterable[Mapping[str, Any]]]


@dataclass(frozen=True)
class Rows:
    """What is trained on and what is held out (None: nothing), as token rows and as examples of the stage, and the
    prompts of the held-out rows.

    `train` is None when streaming. `conversations` are some of those trained, `fingerprint` is equal only where the
    training data is, `micro_batches` are those of a step over all processes, `facts` are for `manifest.json`.
    """

    loader: Loader
    train: Prepared | None
    held_out: Prepared | None
    train_examples: Examples | None
    held_out_examples: Examples | None
    prompts: list[Prompt]
    examples: Sequence[Tokens]
    conversations: Sequence[Conversation]
    fingerprint: str
    micro_batches: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Which of the processes this is; `micro_batches` of a step over all of them, where a checkpoint says it."""

    rank: int = 0
    world_size: int = 1
    micro_batches: int | None = None


ALONE = Place()


@dataclass(frozen=True)
class Question:
    """What the recipe asks for, in the terms of the data layer."""

    recipe: Recipe
    base: Base
    train: list[Reading]
    held_out: list[Reading]
    rendering: Rendering
    context: int | None
    max_length: int
    rejected: Path | None
    place: Place


def question(
    recipe: Recipe,
    base: Base,
    folder: Path | None = None,
    datasets: Datasets | None = None,
    day: str | None = None,
    place: Place = ALONE,
) -> Question:
    data, context, online = recipe.data, context_length(base.location), recipe.stage in ONLINE
    if online and context is not None:  # what the answer leaves for its prompt
        longest, whole = recipe.rollout.max_new_tokens, context
        context = whole - longest
        if context < 1:
            raise RecipeError(
                f"rollout.max_new_tokens: {longest}: the model {base.location.name} was made for {whole} tokens, "
                "prompt included",
                "Lower it.",
            )
    if data.max_length is not None and context is not None and data.max_length > context:
        raise RecipeError(
            f"data.max_length: {data.max_length}: the model {base.location.name} was made for {context} tokens",
            f"Set data.max_length: {context} or less.",
        )
    return Question(
        recipe,
        base,
        train=readings(data.train, datasets, online),
        held_out=readings(data.eval or (), datasets, online),
        rendering=Rendering(**data.model_dump(include={"loss_on", "system", "system_mode", "reasoning"}), date=day),
        context=context,
        max_length=data.max_length or context or sys.maxsize,
        rejected=None if folder is None else folder / REJECTED,
        place=place,
    )


def readings(given: Sequence[Source], datasets: Datasets | None, asks: bool = False) -> list[Reading]:
    """What is read of sources, and as what: with `asks` only what is asked in their rows."""
    return [
        Reading(find_source(each, datasets), each.format, each.columns, part, asks) for part, each in enumerate(given)
    ]


def find_source(source: Source, datasets: Datasets | None = None) -> sources.RowSource:
    """Where the rows of a source lie; raises what `sources.find` raises."""
    where = source.model_dump(include={"name", "split", "data_files", "revision", "field"})
    return sources.find(source.path, **where, datasets=datasets)


def reusable(datasets: Datasets | None) -> Datasets | None:
    """`datasets` that can be read several times: what an iterator gives is held in a list."""
    if datasets is None:
        return None
    return {name: list(rows) if isinstance(rows, Iterator) else rows for name, rows in datasets.items()}


def micro_batches_of(recipe: Recipe, place: Place) -> int:
    """Of an optimizer step, over all processes."""
    train = recipe.train
    if place.micro_batches is not None:
        return place.micro_batches
    if train.global_batch_size is not None:
        return train.global_batch_size // train.batch_size
    return train.gradient_accumulation_steps * place.world_size


def shares_of(recipe: Recipe) -> tuple[float, ...] | None:
    """The weights of the sources of `data.train`, None where they have none."""
    return tuple(source.weight for source in recipe.data.train if source.weight is not None) or None


def prepared(rows: TokenRows, name: str, overlong: str) -> Prepared:
    log.info("%s data:", name)
    return prepare(rows, overlong)


def held_out_prompts(asked: Question, held_out: Prepared | None) -> list[Prompt]:
    if held_out is None:
        return []
    rows = held_out.tokens
    first = np.unique(rows.items, return_index=True)[1]
    if rows.kind == "prompts":
        return [row for i in sorted(first) if isinstance(row := rows.row(int(i)), Prompt)]
    read = (best_answer(rows.row(int(i))) for i in sorted(first))
    return prompts_of([row for row in read if row is not None], asked.rendering)


def facts_of(asked: Question, train: Prepared | None, held_out: Prepared | None) -> dict[str, Any]:
    """`date` is the day that a chat template which writes one was told."""
    parts = {"train": train, "held_out": held_out}
    facts: dict[str, Any] = {"date": asked.rendering.date}
    for name, part in parts.items():
        if part:
            facts[name] = {**asdict(part.summary), "sha256": fingerprint(part.tokens)}
    return facts
