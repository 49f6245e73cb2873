"""The values that a recipe leaves out and that follow from others, so that the program reads only final values."""

from __future__ import annotations

from typing import Any

from tunekit.recipe.schema import Recipe

LOWER_IS_BETTER = ("loss", "perplexity")
WARMUP_RATIO = 0.03
LEARNING_RATE = {"lora": 2e-4, "none": 2e-5}


def derive(recipe: Recipe) -> tuple[Recipe, frozenset[str]]:
    """The recipe with every derived value filled in, and the dotted paths of those that were."""
    adapter, train, data, evaluation = recipe.adapter, recipe.train, recipe.data, recipe.eval
    updates: dict[str, dict[str, Any]] = {"adapter": {}, "train": {}, "data": {}, "eval": {}}
    if adapter.alpha is None:
        updates["adapter"]["alpha"] = 2.0 * adapter.r
    if train.learning_rate is None:
        updates["train"]["learning_rate"] = LEARNING_RATE[adapter.type]
    if train.warmup_steps is None and train.warmup_ratio is None:
        updates["train"]["warmup_ratio"] = WARMUP_RATIO
    if train.gradient_accumulation_steps is None:
        rows = train.global_batch_size or train.per_device_train_batch_size
        updates["train"]["gradient_accumulation_steps"] = rows // train.per_device_train_batch_size
    if data.eval_split is None and (data.eval is not None or data.streaming):
        updates["data"]["eval_split"] = 0
    metric = evaluation.metric_for_best_model.removeprefix("eval_")
    if metric == evaluation.metric_for_best_model:
        updates["eval"]["metric_for_best_model"] = f"eval_{metric}"
    if evaluation.greater_is_better is None:
        updates["eval"]["greater_is_better"] = metric not in LOWER_IS_BETTER
    sections = {name: getattr(recipe, name).model_copy(update=update) for name, update in updates.items() if update}
    paths = frozenset(f"{name}.{key}" for name, update in updates.items() for key in update)
    return recipe.model_copy(update=sections), paths
