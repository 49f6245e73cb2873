"""The reward model of online training: on the backbone of the policy where it can be, else beside it."""

import logging
from pathlib import Path

from tunekit.models.actor import Actor
from tunekit.models.adapter_roles import is_adapted, stands_beside
from tunekit.models.load import load_tokenizer, locate, passport_of, weights_hash
from tunekit.models.quantised import quantization_of
from tunekit.models.reward import RewardModel, load_reward_model
from tunekit.models.shared_reward import SharedReward
from tunekit.recipe.schema import Recipe
from tunekit.stages.base import Base

log = logging.getLogger("tunekit")


def reward_model(recipe: Recipe, policy: Actor, base: Base, name: str) -> RewardModel | SharedReward:
    """The reward model `name`. Raises `RecipeError` where it is none."""
    batch_size = recipe.eval.per_device_eval_batch_size
    adapter = Path(name) / "adapter"
    if is_adapted(policy.model) and policy.flat and _fits(name, adapter, policy, base):
        log.info("reward model %s: its adapter on the backbone of the policy, no second copy", name)
        taken = sum(key.startswith("reward_") for key in policy.model.peft_config)  # type: ignore[union-attr]
        return SharedReward(policy, base.tokenizer, adapter, f"reward_{taken}", batch_size)
    log.info("reward model %s: a model of its own beside the policy", name)
    return load_reward_model(name, recipe.model.dtype, batch_size)


def _fits(name: str, adapter: Path, policy: Actor, base: Base) -> bool:
    """Whether the reward model is an adapter of the very base that the policy has in memory, and reads its tokens."""
    if not (adapter / "adapter_config.json").is_file() or base.start_from == "merge_first":
        return False
    if not stands_beside(adapter):
        return False
    location = locate(name)
    revision = getattr(policy.causal.config, "_commit_hash", None) or base.location.revision
    identity = {"name": base.location.name, "revision": revision, "sha256": weights_hash(base.location)}
    quantization = quantization_of(policy.causal)
    identity["quantization"] = None if quantization == "none" else quantization
    trained_on = passport_of(location).get("base_model") or {}
    if trained_on.get("adapter") or identity != {key: trained_on.get(key) for key in identity}:
        return False
    tokenizer = load_tokenizer(location)
    return (tokenizer.get_vocab(), tokenizer.chat_template) == (
        base.tokenizer.get_vocab(),
        base.tokenizer.chat_template,
    )
