"""Which values of a recipe do not go together, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tunekit.recipe.schema import Recipe


class Conflict(NamedTuple):
    """`message` is about the key `at`; `keys` are all that the rule looked at, dotted."""

    at: str
    keys: tuple[str, ...]
    message: str


def conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Every rule that the recipe breaks; to be asked before `derive`."""
    yield from _weights(recipe)
    yield from _batch(recipe)
    yield from _warmup(recipe)
    yield from _held_out(recipe)


def _weights(recipe: Recipe) -> Iterator[Conflict]:
    adapter, freeze = recipe.adapter, recipe.freeze
    given = sorted(adapter.model_fields_set)
    if given and "type" not in given:
        keys = (*(f"adapter.{name}" for name in given), "adapter.type")
        yield Conflict("adapter", keys, "sets " + ", ".join(given) + " but no type; add type: lora (or type: none)")
    if freeze is not None and adapter.type != "none":
        message = f"does not go with adapter {adapter.type}, which leaves all of the model's own weights as they are; "
        yield Conflict("freeze", ("freeze", "adapter.type"), message + "remove freeze, or set adapter: none")
    if freeze is not None and not freeze.layers and not freeze.embeddings:
        keys = ("freeze", "freeze.layers", "freeze.embeddings")
        yield Conflict("freeze", keys, 'freezes nothing; give layers ("0-19"), embeddings: true, or remove freeze')


def _batch(recipe: Recipe) -> Iterator[Conflict]:
    train = recipe.train
    rows, passes, each = train.global_batch_size, train.gradient_accumulation_steps, train.per_device_train_batch_size
    if rows is None:
        return
    at, keys = "train.global_batch_size", ("train.global_batch_size", "train.per_device_train_batch_size")
    if rows % each:
        fix = f"set {rows + -rows % each}, or change that one"
        message = f"{rows} is not a multiple of train.per_device_train_batch_size ({each}); {fix}"
        yield Conflict(at, keys, message)
    # A dumped recipe holds both; they conflict only when they disagree.
    elif passes is not None and rows != passes * each:
        product = f"gradient_accumulation_steps x per_device_train_batch_size ({passes} x {each})"
        message = f"{rows} is not {product}; remove one of the two"
        yield Conflict(at, (*keys, "train.gradient_accumulation_steps"), message)


def _warmup(recipe: Recipe) -> Iterator[Conflict]:
    train = recipe.train
    if train.warmup_steps is not None and train.warmup_ratio is not None:
        keys = ("train.warmup_ratio", "train.warmup_steps")
        yield Conflict("train.warmup_ratio", keys, "excludes warmup_steps; remove one of the two")


def _held_out(recipe: Recipe) -> Iterator[Conflict]:
    data, evaluation = recipe.data, recipe.eval
    keys = ("data.eval", "data.eval_split")
    if data.eval is not None and data.eval_split:
        yield Conflict("data.eval_split", keys, "excludes data.eval; remove one of the two")
    if data.eval is not None or data.eval_split != 0:
        return
    for name, wanted in (
        ("early_stopping_patience", evaluation.early_stopping_patience is not None),
        ("load_best_model_at_end", evaluation.load_best_model_at_end),
        ("metrics", bool(evaluation.metrics)),
    ):
        if wanted:
            message = "needs held-out rows; remove data.eval_split: 0, give data.eval, or remove this key"
            yield Conflict(f"eval.{name}", (*keys, f"eval.{name}"), message)
