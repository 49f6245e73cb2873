"""Alignment from single answers, each wanted or not: KTO."""

from typing import Any

from tunekit.objectives.kto import unpaired
from tunekit.objectives.objective import Objective
from tunekit.recipe.load import Resolved
from tunekit.recipe.losses import LOSSES
from tunekit.recipe.schema import Recipe
from tunekit.stages import training
from tunekit.stages.rows import Datasets
from tunekit.stages.training import Stage


def objective(recipe: Recipe, allow_code: bool) -> Objective:
    name = recipe.objective.loss[0]
    return unpaired(name, **{key: getattr(recipe.objective, key) for key in LOSSES[name].keys})


STAGE = Stage("kto", "unpaired", objective)


def run(resolved: Resolved, datasets: Datasets | None = None) -> dict[str, Any]:
    """Trains after the recipe and returns what it wrote to `result.json`; raises as `sft.run` does."""
    return training.run(STAGE, resolved, datasets)
