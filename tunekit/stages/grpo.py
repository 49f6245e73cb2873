"""GRPO and its variants: several answers to each prompt, compared with each other."""

from pathlib import Path
from typing import Any

from tunekit.models.actor import Actor
from tunekit.models.policy import Policy
from tunekit.objectives import policy_gradient
from tunekit.objectives.objective import Objective
from tunekit.recipe.load import Resolved
from tunekit.recipe.schema import Recipe
from tunekit.rollout.advantages import Grouped
from tunekit.stages import training
from tunekit.stages.base import Base
from tunekit.stages.online import Online, make_actor, prepare
from tunekit.stages.rows import Datasets, Rows
from tunekit.stages.training import Stage
from tunekit.train.engine import Engine


def objective(recipe: Recipe, allow_code: bool) -> Objective:
    settings = recipe.objective
    return policy_gradient.grpo(
        settings.loss[0],
        beta=settings.beta,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        max_new_tokens=recipe.rollout.max_new_tokens,
    )


def policy(recipe: Recipe, base: Base, rows: Rows, engine: Engine) -> Actor:
    return make_actor(recipe, base, rows, engine, None)


def online(
    recipe: Recipe, policy: Policy, base: Base, rows: Rows, folder: Path, allow_code: bool, engine: Engine
) -> Online:
    settings = recipe.objective
    method = Grouped(settings.scale_rewards, by_tokens=settings.loss[0] == "dapo")
    return prepare(recipe, policy, base, rows, folder, method, settings.beta, allow_code, engine)


STAGE = Stage("grpo", "prompts", objective, policy, online=online)


def run(resolved: Resolved, datasets: Datasets | None = None, *, allow_code: bool = False) -> dict[str, Any]:
    """Trains after the recipe and returns what it wrote to `result.json`; raises as `sft.run` does."""
    return training.run(STAGE, resolved, datasets, allow_code=allow_code)
