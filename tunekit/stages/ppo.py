"""PPO: rewards of whole answers become advantages of tokens through a value function."""

from pathlib import Path
from typing import Any

from tunekit.models.actor import Actor
from tunekit.models.policy import Policy
from tunekit.objectives import policy_gradient
from tunekit.objectives.objective import Objective
from tunekit.recipe.load import Resolved
from tunekit.recipe.schema import Recipe
from tunekit.rollout.advantages import Generalised
from tunekit.stages import training
from tunekit.stages.base import Base
from tunekit.stages.online import Online, make_actor, prepare
from tunekit.stages.rows import Datasets, Rows
from tunekit.stages.training import Stage
from tunekit.stages.value import make_value
from tunekit.train.engine import Engine


def objective(recipe: Recipe, allow_code: bool) -> Objective:
    names = ("cliprange", "cliprange_value", "vf_coef", "entropy_coef")
    return policy_gradient.ppo(**{name: getattr(recipe.objective, name) for name in names})


def policy(recipe: Recipe, base: Base, rows: Rows, engine: Engine) -> Actor:
    return make_actor(recipe, base, rows, engine, make_value)


def online(
    recipe: Recipe, policy: Policy, base: Base, rows: Rows, folder: Path, allow_code: bool, engine: Engine
) -> Online:
    settings = recipe.objective
    names = ("kl_coef", "gamma", "lam", "whiten_rewards", "kl_target", "kl_horizon")
    method = Generalised(estimator=settings.kl_estimator, **{name: getattr(settings, name) for name in names})
    return prepare(recipe, policy, base, rows, folder, method, settings.kl_coef, allow_code, engine)


STAGE = Stage("ppo", "prompts", objective, policy, online=online)


def run(resolved: Resolved, datasets: Datasets | None = None, *, allow_code: bool = False) -> dict[str, Any]:
    """Trains after the recipe and returns what it wrote to `result.json`; raises as `sft.run` does."""
    return training.run(STAGE, resolved, datasets, allow_code=allow_code)
