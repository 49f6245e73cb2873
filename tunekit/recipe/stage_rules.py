"""Which values of a recipe do not go with what it trains: the stage, the losses and their keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.recipe.conflict import Conflict
from tunekit.recipe.data import Data
from tunekit.recipe.losses import LOSSES, NUM_GENERATIONS, ONLINE, facts_of, keys_of, losses_of, stage_of
from tunekit.recipe.objective import Objective
from tunekit.recipe.rewards import reward_conflicts
from tunekit.recipe.rollout import OWN_ADAPTER
from tunekit.recipe.schema import Eval, Recipe

# Keys that only one kind of training reads, and what the others say to it.
ONLY_SFT = {
    "data.packing": "rows of other stages lie side by side without padding anyway",
    "data.streaming": "their rows are read before training, as the reference and the pairs of answers need it",
    "data.loss_on": "of pairs and labelled answers the answer is trained",
    "eval.metrics": "they are measured by loss, accuracy and margin, and by eval.tasks",
}
ONLINE_INSTEAD = {
    "data.streaming": "its prompts are read before training",
    "data.loss_on": "what the policy writes is trained",
    "data.reasoning": "its data are prompts",
    "eval.metrics": "held-out prompts are answered and rewarded",
}
# Keys that other stages than these do not read.
ONLY_ONLINE = ("rewards", "rollout", "limits", "value_model")
MEASURED = {
    "sft": ("eval_loss", "eval_perplexity"),
    "dpo": ("eval_loss", "eval_accuracy", "eval_margin"),
    "kto": ("eval_loss",),
    "reward": ("eval_loss", "eval_accuracy", "eval_margin"),
    **dict.fromkeys(ONLINE, ("eval_reward", "eval_length", "eval_ended")),
}
# Figures of held-out rows that a gate may name besides.
_SIDES = tuple(f"eval_{what}_{side}" for what in ("reward", "logps", "length") for side in ("chosen", "rejected"))
WATCHED: dict[str, tuple[str, ...]] = {
    "sft": (),
    "dpo": (*_SIDES, "eval_kl"),
    "kto": (*_SIDES, "eval_kl"),
    "reward": (*_SIDES[:2], "reward.accuracy", "reward.ece", "reward.length_correlation", "reward.preferred_longer"),
    **dict.fromkeys(ONLINE, ("eval_reward_std",)),
}


def stage_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    stage = stage_of(recipe.stage, recipe.objective.loss)
    yield from _losses(recipe, stage)
    yield from _keys(recipe, stage)
    yield from _values(recipe, stage)
    yield from _best_model(recipe, stage)
    yield from _only_sft(recipe, stage)
    yield from _online(recipe, stage) if stage in ONLINE else _not_online(recipe, stage)
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
    if stage != "dpo" and len(given) > 1:
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
    if recipe.objective.beta == 0 and stage not in ONLINE:
        message = "must be above 0 with these losses, which divide by it or would be constant; set 0.1"
        yield Conflict("objective.beta", ("objective.beta", "objective.loss", "stage"), message)
    if smoothing == 0 and "exo_pair" in losses:
        at = "objective.label_smoothing"
        message = "must be above 0 with exo_pair, which takes its logarithm; set 0.001"
        yield Conflict(at, (at, "objective.loss"), message)
    passes = train.gradient_accumulation_steps or 1
    rows = train.global_batch_size or train.batch_size
    if "aot" in losses and train.per_device_train_batch_size == "auto":
        at = "train.per_device_train_batch_size"
        message = "auto: does not go with loss aot, which compares all pairs of a step: they must be one batch; give "
        yield Conflict(at, (at, "objective.loss"), message + "their number")
    elif "aot" in losses and (passes > 1 or rows > train.batch_size):
        at = "train.global_batch_size" if passes == 1 else "train.gradient_accumulation_steps"
        keys = ("train.global_batch_size", "train.gradient_accumulation_steps", "train.per_device_train_batch_size")
        message = "does not go with loss aot, which compares all pairs of a step: they must be one batch; remove it, "
        yield Conflict(at, (*keys, "objective.loss"), message + "and raise train.per_device_train_batch_size instead")


def _best_model(recipe: Recipe, stage: str) -> Iterator[Conflict]:
    evaluation, key = recipe.eval, "eval.metric_for_best_model"
    computed = [*MEASURED[stage], *(f"eval_{name}" for name in evaluation.metrics)]
    name = evaluation.metric_for_best_model
    if name is not None and f"eval_{name.removeprefix('eval_')}" not in computed:
        more = ", or add it to eval.metrics" if stage == "sft" else ""
        message = f'"{name}" is not computed; accepted: {", ".join(computed)}{more}'
        yield Conflict(key, (key, "eval.metrics", "stage", "objective.loss"), message)


def _only_sft(recipe: Recipe, stage: str) -> Iterator[Conflict]:
    if stage == "sft":
        return
    online = stage in ONLINE
    sections: dict[str, Any] = {"data": (recipe.data, Data), "eval": (recipe.eval, Eval)}
    for key, why in ONLY_SFT.items():
        section, name = key.split(".")
        values, model = sections[section]
        if getattr(values, name) != model.model_fields[name].default:
            why = ONLINE_INSTEAD.get(key, why) if online else why
            message = f"is for stage sft, and this is {stage}: {why}; remove it"
            yield Conflict(key, (key, "stage", "objective.loss"), message)


def _not_online(recipe: Recipe, stage: str) -> Iterator[Conflict]:
    for name in ONLY_ONLINE:
        if getattr(recipe, name) != Recipe.model_fields[name].default:
            message = f"is for stages {', '.join(ONLINE)}, and this is {stage}; remove it"
            yield Conflict(name, (name, "stage", "objective", "objective.loss"), message)


def _online(recipe: Recipe, stage: str) -> Iterator[Conflict]:
    rollout, train, objective = recipe.rollout, recipe.train, recipe.objective
    if recipe.rewards is None:
        message = f"is missing: stage {stage} asks what answers are rewarded for; add reward_model: out/reward, or "
        yield Conflict("rewards", ("rewards", "reward_model", "stage"), message + "rewards: number_match (a function)")
    yield from reward_conflicts(recipe.rewards or ())
    for name in ("gradient_accumulation_steps", "global_batch_size"):
        if getattr(train, name) not in (None, 1):  # a recipe that is written out has every key
            message = f"has no effect with stage {stage}, whose steps have rollout.num_prompts x num_generations / "
            keys = (f"train.{name}", "stage")
            yield Conflict(f"train.{name}", keys, message + "num_mini_batches answers; remove it, and set those")
    if recipe.data.overlong == "truncate":
        message = f"truncate: does not go with stage {stage}: it cuts the end of a prompt, where the answer begins; "
        yield Conflict("data.overlong", ("data.overlong", "stage"), message + "set error or drop")
    if stage != "ppo" and rollout.num_generations == 1:
        message = f"must be 2 or more with stage {stage}, which compares the answers to one prompt"
        yield Conflict("rollout.num_generations", ("rollout.num_generations", "stage"), message)
    if stage != "ppo" and recipe.value_model is not None:
        yield Conflict("value_model", ("value_model", "stage"), f"is for stage ppo, and this is {stage}; remove it")
    if recipe.value_model == OWN_ADAPTER and recipe.adapter.type != "lora":
        message = "adapter: needs a policy that is an adapter too; set adapter: lora, or value_model: null"
        yield Conflict("value_model", ("value_model", "adapter.type"), message)
    if recipe.value_model == OWN_ADAPTER and recipe.adapter.start_from == "new":
        message = "adapter: does not go with adapter.from: new, where two adapters act together; set from: continue"
        yield Conflict("value_model", ("value_model", "adapter.start_from"), message)
    if recipe.value_model == OWN_ADAPTER and train.activation_checkpointing:
        message = "does not go with value_model: adapter, which switches adapters between forward and backward pass"
        yield Conflict("train.activation_checkpointing", ("train.activation_checkpointing", "value_model"), message)
    answers = rollout.num_prompts * (rollout.num_generations or NUM_GENERATIONS[stage])
    if (objective.num_mini_batches or 1) > answers:
        message = f"is more than the {answers} answers of a rollout"
        yield Conflict("objective.num_mini_batches", ("objective.num_mini_batches", "rollout.num_prompts"), message)
    if (rollout.engine == "builtin") != (rollout.base_url is None):
        at = "rollout.base_url" if rollout.base_url is None else "rollout.engine"
        message = f"engine {rollout.engine} {'needs' if rollout.base_url is None else 'has no'} rollout.base_url"
        yield Conflict(at, ("rollout.engine", "rollout.base_url"), message)
