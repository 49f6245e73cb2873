"""Which values of a recipe do not go with what it trains: the stage, the losses and their keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tunekit.recipe.losses import LOSSES, facts_of, keys_of, losses_of, stage_of
from tunekit.recipe.objective import Objective
from tunekit.recipe.schema import Data, Eval, Recipe


class Conflict(NamedTuple):
    """`message` is about the key `at`; `keys` are all that the rule looked at, dotted."""

    at: str
    keys: tuple[str, ...]
    message: str


# Keys that only one kind of training reads, and what the others say to it.
ONLY_SFT = {
    "data.packing": "rows of other stages lie side by side without padding anyway",
    "data.streaming": "their rows are read before training, as the reference and the pairs of answers need it",
    "data.loss_on": "of pairs and labelled answers the answer is trained",
    "eval.metrics": "they are measured by loss, accuracy and margin, and by eval.tasks",
}
MEASURED = {
    "sft": ("eval_loss", "eval_perplexity"),
    "dpo": ("eval_loss", "eval_accuracy", "eval_margin"),
    "kto": ("eval_loss",),
    "reward": ("eval_loss", "eval_accuracy", "eval_margin"),
}
# Figures of held-out rows that a gate may name besides.
_SIDES = tuple(f"eval_{what}_{side}" for what in ("reward", "logps", "length") for side in ("chosen", "rejected"))
WATCHED: dict[str, tuple[str, ...]] = {
    "sft": (),
    "dpo": (*_SIDES, "eval_kl"),
    "kto": (*_SIDES, "eval_kl"),
    "reward": (*_SIDES[:2], "reward.accuracy", "reward.ece", "reward.length_correlation", "reward.preferred_longer"),
}


def stage_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    stage = stage_of(recipe.stage, recipe.objective.loss)
    yield from _losses(recipe, stage)
    yield from _keys(recipe, stage)
    yield from _values(recipe, stage)
    yield from _best_model(recipe, stage)
    yield from _only_sft(recipe, stage)
    if stage == "reward" and recipe.eval.tasks:
        message = "are answered by a language model, and this is a reward model; remove them, and measure it with "
        yield Conflict("eval.tasks", ("eval.tasks", "stage", "objective.loss"), message + "tunekit eval")


def _losses(recipe: Recipe, stage: str) -> Iterator[Conflict]:
    given, weights, keys = recipe.objective.loss or (), recipe.objective.loss_weights, ("objective.loss", "stage")
    for loss in given:
        if facts_of(loss).stage != stage:
            fit = ", ".join(name for name, facts in LOSSES.items() if facts.stage == stage) or "none"
            message = f"{loss} is for stage {facts_of(loss).stage}, and this is {stage}, which takes: {fit}"
            yield Conflict("objective.loss", keys, message)
    if stage in ("kto", "reward") and len(given) > 1:
        yield Conflict("objective.loss", keys, f"stage {stage} takes one loss, and {len(given)} are given; leave one")
    if weights is not None and stage == "dpo" and len(weights) != len(losses_of(stage, given)):
        message = f"has {len(weights)} numbers for {len(losses_of(stage, given))} losses; give one for each"
        yield Conflict("objective.loss_weights", (*keys, "objective.loss_weights"), message)


def _keys(recipe: Recipe, stage: str) -> Iterator[Conflict]:
    losses = losses_of(stage, recipe.objective.loss)
    taken = keys_of(losses)
    for name in Objective.model_fields:
        if name == "loss" or name in taken or getattr(recipe.objective, name) is None:
            continue
        owners = [loss for loss, facts in LOSSES.items() if name in keys_of((loss,))]
        whose = f"loss {', '.join(losses)}, which takes {', '.join(taken)}" if losses else f"stage {stage}"
        at = f"objective.{name}"
        message = f"has no effect with {whose}; remove it, or set a loss that has it: {', '.join(owners)}"
        yield Conflict(at, (at, "objective.loss", "stage"), message)


def _values(recipe: Recipe, stage: str) -> Iterator[Conflict]:
    losses, train = losses_of(stage, recipe.objective.loss), recipe.train
    smoothing = recipe.objective.label_smoothing
    if smoothing is None:
        smoothing = keys_of(losses).get("label_smoothing")
    if smoothing == 0 and "exo_pair" in losses:
        at = "objective.label_smoothing"
        message = "must be above 0 with exo_pair, which takes its logarithm; set 0.001"
        yield Conflict(at, (at, "objective.loss"), message)
    passes = train.gradient_accumulation_steps or 1
    rows = train.global_batch_size or train.per_device_train_batch_size
    if "aot" in losses and (passes > 1 or rows > train.per_device_train_batch_size):
        at = "train.global_batch_size" if passes == 1 else "train.gradient_accumulation_steps"
        keys = ("train.global_batch_size", "train.gradient_accumulation_steps", "train.per_device_train_batch_size")
        message = "does not go with loss aot, which compares all pairs of a step: they must be one batch; remove it, "
        yield Conflict(at, (*keys, "objective.loss"), message + "and raise train.per_device_train_batch_size instead")


def _best_model(recipe: Recipe, stage: str) -> Iterator[Conflict]:
    evaluation, key = recipe.eval, "eval.metric_for_best_model"
    computed = [*MEASURED[stage], *(f"eval_{name}" for name in evaluation.metrics)]
    name = evaluation.metric_for_best_model
    if f"eval_{name.removeprefix('eval_')}" not in computed:
        more = ", or add it to eval.metrics" if stage == "sft" else ""
        message = f'"{name}" is not computed; accepted: {", ".join(computed)}{more}'
        yield Conflict(key, (key, "eval.metrics", "stage", "objective.loss"), message)


def _only_sft(recipe: Recipe, stage: str) -> Iterator[Conflict]:
    if stage == "sft":
        return
    sections: dict[str, Any] = {"data": (recipe.data, Data), "eval": (recipe.eval, Eval)}
    for key, why in ONLY_SFT.items():
        section, name = key.split(".")
        values, model = sections[section]
        if getattr(values, name) != model.model_fields[name].default:
            message = f"is for stage sft, and this is {stage}: {why}; remove it"
            yield Conflict(key, (key, "stage", "objective.loss"), message)
