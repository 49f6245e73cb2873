"""Reward models: pairs of answers in, a sequence-classification checkpoint with one output out."""

from typing import Any

from tunekit.models.scorer import Scorer
from tunekit.objectives.objective import Objective
from tunekit.objectives.reward import reward
from tunekit.recipe.load import Resolved
from tunekit.recipe.schema import Recipe
from tunekit.stages import training
from tunekit.stages.assemble import compute_dtype, finish_policy, trained_model
from tunekit.stages.base import Base
from tunekit.stages.reward_artefact import head_options, write_reward_model
from tunekit.stages.rows import Datasets, Rows
from tunekit.stages.training import Stage
from tunekit.train.engine import Engine


def objective(recipe: Recipe, allow_code: bool) -> Objective:
    return reward(center_rewards_coefficient=recipe.objective.center_rewards_coefficient)


def make_scorer(recipe: Recipe, base: Base, rows: Rows, engine: Engine) -> Scorer:
    """The model with a head of one output, new where it has none; the head is trained whole, also beside an adapter."""
    model = trained_model(recipe, base, engine, task_type="SEQ_CLS", **head_options(base))
    scorer = Scorer(model, compute_dtype(recipe, engine), base.tokenizer.pad_token_id)
    finish_policy(recipe, base, rows, scorer)
    return scorer


STAGE = Stage("reward", "pairs", objective, make_scorer, write=write_reward_model)


def run(resolved: Resolved, datasets: Datasets | None = None) -> dict[str, Any]:
    """Trains after the recipe and returns what it wrote to `result.json`; raises as `sft.run` does."""
    return training.run(STAGE, resolved, datasets)
