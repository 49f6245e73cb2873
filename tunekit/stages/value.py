"""The value function of PPO, by the recipe: a head on the policy, an adapter beside it, or a model of its own."""

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from tunekit.errors import RecipeError
from tunekit.models import adapter_roles, adapters
from tunekit.models.actor import Actor, Value
from tunekit.models.load import load_model, load_tokenizer, locate
from tunekit.recipe.rollout import OWN_ADAPTER
from tunekit.recipe.schema import Recipe
from tunekit.stages.base import Base
from tunekit.train.engine import Engine


def make_value(recipe: Recipe, base: Base, actor: Actor, engine: Engine) -> Value:
    """Raises `RecipeError` where the model that it should start from does not fit the policy."""
    if recipe.value_model is None:
        return Value(actor.causal.config.get_text_config().hidden_size)
    if recipe.value_model == OWN_ADAPTER:
        return Value(actor.causal.config.get_text_config().hidden_size, adapter_roles.add_value(actor.model))
    return _separate(recipe, base, actor, engine)


def _separate(recipe: Recipe, base: Base, actor: Actor, engine: Engine) -> Value:
    """A reward model that goes on as a value function, its head too, trained as the policy is."""
    name = str(recipe.value_model)
    location = locate(name)
    if load_tokenizer(location).get_vocab() != base.tokenizer.get_vocab():
        raise RecipeError(
            f"value_model: {name} has another tokenizer than the policy, and reads the same tokens",
            "Take a reward model that was trained on the model of the policy, or value_model: null.",
        )
    lora = recipe.adapter.type == "lora"
    model: Any = load_model(
        location,
        dtype=actor.dtype if lora else "float32",
        device=engine.device,
        attn_implementation=recipe.model.attn_implementation if actor.flat else "sdpa",
        auto_class=AutoModelForSequenceClassification,
        num_labels=1,
        pad_token_id=base.tokenizer.pad_token_id,
    )
    if not hasattr(model, "score"):
        raise RecipeError(f"value_model: {name} is no decoder with a reward for each text", "Take another one.")
    backbone, head = model.base_model, model.score
    if lora:
        settings = recipe.adapter.model_dump(exclude={"type", "start_from"})
        adapters.add_lora(model, **settings, task_type="FEATURE_EXTRACTION")
    value = Value(head.weight.shape[1], model=backbone)
    value.autocast = not lora and actor.dtype != torch.float32
    value.score.weight.data.copy_(head.weight)
    return value
