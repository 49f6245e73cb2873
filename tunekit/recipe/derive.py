"""The values that a recipe leaves out and that follow from others, so that the program reads only final values."""

from __future__ import annotations

from typing import Any

from tunekit.recipe.distributed import known_processes
from tunekit.recipe.losses import NUM_GENERATIONS, ONLINE, keys_of, losses_of, stage_of
from tunekit.recipe.schema import Recipe

LOWER_IS_BETTER = ("loss", "perplexity")
WARMUP_RATIO = 0.03
AUTO_ROWS = 8  # of a step whose micro-batches are found at the start, or the next multiple of the processes
LEARNING_RATE = {
    "sft": {"lora": 2e-4, "none": 2e-5},
    "dpo": {"lora": 5e-5, "none": 1e-6},
    "kto": {"lora": 5e-5, "none": 1e-6},
    "reward": {"lora": 1e-4, "none": 1e-5},
    **{stage: {"lora": 2e-5, "none": 1e-6} for stage in ONLINE},
}


def derive(recipe: Recipe) -> tuple[Recipe, frozenset[str]]:
    """The recipe with every derived value filled in, and the dotted paths of those that were."""
    adapter, train, data, evaluation = recipe.adapter, recipe.train, recipe.data, recipe.eval
    stage = stage_of(recipe.stage, recipe.objective.loss)
    updates: dict[str, dict[str, Any]] = {"adapter": {}, "train": {}, "data": {}, "eval": {}, "rollout": {}}
    updates["objective"] = _objective(recipe, stage)
    if adapter.alpha is None:
        updates["adapter"]["alpha"] = 2.0 * adapter.r
    if train.learning_rate is None:
        updates["train"]["learning_rate"] = LEARNING_RATE[stage][adapter.type]
    if train.num_train_epochs is None:
        updates["train"]["num_train_epochs"] = 3.0 if stage == "sft" else 1.0
    if train.warmup_steps is None and train.warmup_ratio is None:
        updates["train"]["warmup_ratio"] = WARMUP_RATIO
    rows = train.global_batch_size
    if train.per_device_train_batch_size == "auto" and rows is None and stage not in ONLINE:
        rows = updates["train"]["global_batch_size"] = AUTO_ROWS + -AUTO_ROWS % known_processes(recipe.distributed)
    if train.gradient_accumulation_steps is None:
        together = train.batch_size * known_processes(recipe.distributed)
        updates["train"]["gradient_accumulation_steps"] = (rows or together) // together or 1
    if recipe.distributed.strategy is None:
        alone = recipe.distributed.processes in (None, 1) and recipe.distributed.nodes == 1
        updates["distributed"] = {"strategy": "none" if alone else "ddp"}
    if data.eval_split is None and (data.eval is not None or data.streaming):
        updates["data"]["eval_split"] = 0
    if stage in ONLINE and recipe.rollout.num_generations is None:
        updates["rollout"]["num_generations"] = NUM_GENERATIONS[stage]
    named = evaluation.metric_for_best_model or best_metric(stage)
    metric = named.removeprefix("eval_")
    if evaluation.metric_for_best_model != f"eval_{metric}":
        updates["eval"]["metric_for_best_model"] = f"eval_{metric}"
    if evaluation.greater_is_better is None:
        updates["eval"]["greater_is_better"] = metric not in LOWER_IS_BETTER
    final: dict[str, Any] = {
        name: getattr(recipe, name).model_copy(update=update) for name, update in updates.items() if update
    }
    paths = {f"{name}.{key}" for name, update in updates.items() for key in update}
    if recipe.stage is None:
        final["stage"] = stage
        paths.add("stage")
    return recipe.model_copy(update=final), frozenset(paths)


def best_metric(stage: str) -> str:
    """What decides which checkpoint is best, where the recipe does not say it."""
    return "eval_reward" if stage in ONLINE else "eval_loss"


def _objective(recipe: Recipe, stage: str) -> dict[str, Any]:
    """What of the objective follows from the stage and from the losses; what no loss takes stays null."""
    losses = losses_of(stage, recipe.objective.loss)
    values: dict[str, Any] = {**keys_of(losses), **({"loss": losses} if losses else {})}
    return {key: value for key, value in values.items() if value is not None and getattr(recipe.objective, key) is None}
