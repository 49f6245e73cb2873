"""Reads all rows of a recipe before step 1: tokenised to disk, split, checked, planned."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tunekit.data.examples import Examples
from tunekit.data.loader import PlannedLoader
from tunekit.data.overlap import find_overlap, sentences
from tunekit.data.pairs import best_answer
from tunekit.data.plan import Mixture, Plan
from tunekit.data.prepare import Prepared, all_rows, check_kind, check_overlong, split
from tunekit.data.prepare import Rows as TokenRows
from tunekit.data.rejected import check_rejected
from tunekit.data.rows import Conversation
from tunekit.data.store import Store
from tunekit.data.tokenise import first_rows, tokenised
from tunekit.errors import DataError
from tunekit.recipe.schema import Recipe
from tunekit.stages.base import Base
from tunekit.stages.rows import (
    ALONE,
    SERVED,
    Datasets,
    Place,
    Question,
    Rows,
    facts_of,
    held_out_prompts,
    micro_batches_of,
    prepared,
    question,
    shares_of,
)
from tunekit.stages.stream import stream_rows

log = logging.getLogger("tunekit")

STREAM_LOOK = 1000


@dataclass(frozen=True)
class Look:
    """The rows of a recipe as rendered, before the rule for over-long ones, and what is wrong with them."""

    train: TokenRows
    held_out: TokenRows | None
    stores: list[Store]
    num_rejected: int
    problems: list[DataError]


def read_rows(
    recipe: Recipe,
    base: Base,
    *,
    kind: str | None = "conversations",
    folder: Path | None = None,
    datasets: Datasets | None = None,
    day: str | None = None,
    place: Place = ALONE,
) -> Rows:
    """Reads, splits, renders and checks the data; what was found is said aloud.

    Rejected rows are written to `rejected.jsonl` in `folder`. `datasets` are those that the recipe names `memory:NAME`,
    `day` is what a chat template that writes the date is told (ISO 8601; None: today).
    Raises `DataError` where the rows are not of the `kind` that a stage trains on (None: any).
    """
    asked = question(recipe, base, folder, datasets, day, place)
    return stream_rows(asked, kind) if recipe.data.streaming else _read_all(asked, kind)


def look(recipe: Recipe, base: Base, datasets: Datasets | None = None) -> Look:
    """All rows of the recipe (of a stream, the first of each source), with their problems told and not raised.

    Raises `DataError` where there is nothing to look at.
    """
    asked = question(recipe, base, datasets=datasets)
    readings = [*asked.train, *asked.held_out]
    if not recipe.data.streaming:
        return _look(asked, [tokenised(each, base.tokenizer, asked.rendering) for each in readings])
    log.info("data.streaming: only the first %s rows of each source are looked at", f"{STREAM_LOOK:,}")
    count = STREAM_LOOK + int(recipe.data.eval_split or 0)
    return _look(asked, [first_rows(each, count, base.tokenizer, asked.rendering) for each in readings])


def _look(asked: Question, stores: list[Store]) -> Look:
    data, problems = asked.recipe.data, list[DataError]()
    num_rejected = 0
    try:
        num_rejected = check_rejected(stores, data.max_rejected, asked.rejected)
    except DataError as error:
        if not any(len(store) for store in stores[: len(asked.train)]):
            raise
        problems.append(error)
    rows = all_rows(stores[: len(asked.train)], asked.max_length)
    parts = [rows]
    if asked.held_out:
        parts.append(all_rows(stores[len(asked.train) :], asked.max_length))
    for part in parts:
        try:
            check_overlong(part, data.overlong, asked.context)
        except DataError as error:
            problems.append(error)
    if asked.held_out:
        return Look(rows, parts[1], stores, num_rejected, problems)
    if data.streaming:
        mask = rows.items < int(data.eval_split or 0)  # as the run does
    else:
        mask = split(rows.items, data.eval_split, asked.recipe.train.seed)
    return Look(rows.some(~mask), rows.some(mask) if mask.any() else None, stores, num_rejected, problems)


def _read_all(asked: Question, kind: str | None) -> Rows:
    data, tokenizer = asked.recipe.data, asked.base.tokenizer
    found = _look(asked, [tokenised(each, tokenizer, asked.rendering) for each in [*asked.train, *asked.held_out]])
    if found.problems:
        raise found.problems[0]
    check_kind(f"data.train: {found.train.source(0)}", found.train.kind, kind)
    if asked.held_out and found.held_out:
        check_kind(f"data.eval: {found.held_out.source(0)}", found.held_out.kind, kind)
    train = prepared(found.train, "training", data.overlong)
    measured = _held_out(asked, found.held_out)
    overlap = find_overlap(train.tokens, measured.tokens if measured else None)
    for sentence in sentences(overlap):
        log.warning("%s", sentence)
    facts = facts_of(asked, train, measured) | {"rejected": found.num_rejected, "overlap": asdict(overlap)}
    seed = asked.recipe.train.seed
    examples = Examples(train.tokens, seed)
    plan = make_plan(asked.recipe, examples, asked.place)
    ends = frozenset(end for store in found.stores for end in store.report["terminators"])
    return Rows(
        loader=PlannedLoader(examples, plan, ends),
        train=train,
        held_out=measured,
        train_examples=examples,
        held_out_examples=None if measured is None else Examples(measured.tokens, seed),
        prompts=held_out_prompts(asked, measured),
        examples=[train.tokens[0], train.tokens[len(train.tokens) - 1]],
        conversations=_conversations(train.tokens),
        fingerprint=facts["train"]["sha256"],
        micro_batches=plan.micro_batches,
        facts=facts,
    )


def _held_out(asked: Question, rows: TokenRows | None) -> Prepared | None:
    """The held-out rows after the rule for over-long ones; none is no error where they were split off by chance."""
    if rows is None:
        return None
    try:
        return prepared(rows, "held-out", asked.recipe.data.overlong)
    except DataError as error:
        if asked.held_out:
            raise
        log.warning("nothing is held out: %s (data.eval names rows of its own)", error.message)
        return None


def _conversations(rows: TokenRows) -> list[Conversation]:
    """Up to `SERVED` conversations, from the whole length of the data."""
    numbers = np.linspace(0, len(rows) - 1, min(SERVED, len(rows))).astype(int)
    return [row for i in numbers.tolist() if isinstance(row := best_answer(rows.row(i)), Conversation)]


def make_plan(recipe: Recipe, rows: Examples, place: Place = ALONE) -> Plan:
    """The order of training; says aloud which share of the trained tokens each source of a mixture has."""
    settings, data, shares = recipe.train, recipe.data, shares_of(recipe)
    mixture = None if shares is None else Mixture(rows.parts, rows.trained, shares)
    for source, count in zip(data.train, np.bincount(rows.parts, minlength=len(data.train)), strict=True):
        if count == 0:
            raise DataError(
                f"{source.path}: no row of it is left to train on: all are held out, rejected or over-long",
                "Remove the source from data.train, or change data.eval_split or data.overlong.",
            )
    plan = Plan(
        lengths=rows.lengths,
        batch_size=settings.batch_size,
        micro_batches=micro_batches_of(recipe, place),
        epochs=settings.num_train_epochs,
        max_steps=settings.max_steps,
        seed=settings.seed,
        sampling=settings.sampling,
        pack_to=(data.max_length or int(rows.lengths.max())) if data.packing else None,
        mixture=mixture,
        rank=place.rank,
        world_size=place.world_size,
    )
    if mixture is not None:
        log.info("shares of the trained tokens: %s", shares_said(recipe, plan))
    return plan


def shares_said(recipe: Recipe, plan: Plan) -> str:
    """The share of each source of `data.train` in the trained tokens of the run, real and asked, and its passes."""
    mixture, trained = plan.mixture, plan.trained_by_part()
    assert mixture is not None
    held, total, weight = np.bincount(mixture.parts, mixture.trained), sum(trained), sum(mixture.shares)
    return ", ".join(
        f"{source.path} {count / total:.2%} (asked {share / weight:.2%}; {count / own:.2f} passes)"
        for source, count, share, own in zip(recipe.data.train, trained, mixture.shares, held, strict=True)
    )
