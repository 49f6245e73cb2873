"""Direct alignment from pairs of answers: DPO and its family. The reference is the policy before its first step."""

import hashlib
import inspect
import logging
from pathlib import Path
from typing import Any

from tunekit.errors import RecipeError
from tunekit.evals.code import load_function
from tunekit.objectives.objective import Objective
from tunekit.objectives.pair_losses import PAIR_LOSSES, PairLoss
from tunekit.objectives.preference import Weighted, preference
from tunekit.recipe.load import Resolved
from tunekit.recipe.losses import LOSSES
from tunekit.recipe.objective import Objective as Settings
from tunekit.recipe.schema import Recipe
from tunekit.stages import training
from tunekit.stages.rows import Datasets
from tunekit.stages.training import Stage

log = logging.getLogger("tunekit")


def objective(recipe: Recipe, allow_code: bool) -> Objective:
    """The losses of the recipe with their parameters. Raises `RecipeError` where the user's own may not run."""
    settings = recipe.objective
    weights = settings.loss_weights or [1.0] * len(settings.loss)
    losses = [(name, _loss(name, allow_code)) for name in settings.loss]
    weighted = [
        Weighted(loss, weight, _parameters(name, loss, settings))
        for (name, loss), weight in zip(losses, weights, strict=True)
    ]
    return preference(weighted, settings.sft_weight)


def _loss(name: str, allow_code: bool) -> PairLoss:
    if name in PAIR_LOSSES:
        return PAIR_LOSSES[name]
    path, _, function = name.rpartition(":")
    if not allow_code:
        raise RecipeError(f"objective.loss: {name} is code", "Read it, and give --allow-code if it may run.")
    loss = load_function(Path(path), function, "objective.loss")
    log.info("objective.loss: %s (sha256 %s)", name, hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return PairLoss(loss, needs_reference=True, per_token=False)


def _parameters(name: str, loss: PairLoss, settings: Settings) -> dict[str, float]:
    """The keys of `objective` that a loss takes: as the table says, or the user's own by its signature."""
    if name in LOSSES:
        return {key: getattr(settings, key) for key in LOSSES[name].keys}
    wanted = [
        each.name for each in inspect.signature(loss.function).parameters.values() if each.kind is each.KEYWORD_ONLY
    ]
    for key in wanted:
        if getattr(settings, key, None) is None:
            raise RecipeError(
                f"objective.loss: {name} takes {key}, which is no key of objective that has a value",
                f"Keyword-only parameters are keys: {', '.join(Settings.model_fields)}.",
            )
    return {key: getattr(settings, key) for key in wanted}


STAGE = Stage("dpo", "pairs", objective)


def run(resolved: Resolved, datasets: Datasets | None = None, *, allow_code: bool = False) -> dict[str, Any]:
    """Trains after the recipe and returns what it wrote to `result.json`; raises as `sft.run` does."""
    return training.run(STAGE, resolved, datasets, allow_code=allow_code)
