"""The losses that a recipe may name: the stage of each, and which keys of `objective` it takes, with their defaults."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

USERS_OWN = re.compile(r".+\.py:\w+", re.DOTALL)  # path/to/file.py:function
BETA = {"beta": 0.1}
SMOOTHED = {"beta": 0.1, "label_smoothing": 0.0}
UNPAIRED = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
NUM_GENERATIONS = {"ppo": 1, "grpo": 8, "rloo": 2}
ONLINE = ("ppo", "grpo", "rloo")  # stages whose answers the policy writes itself
SAMPLED: dict[str, Any] = {"num_mini_batches": 1, "missing_eos_penalty": None}
RATIOS: dict[str, Any] = {**SAMPLED, "epsilon": 0.2, "epsilon_high": None, "num_iterations": 1}
GROUPS: dict[str, Any] = {
    **RATIOS,
    "beta": 0.0,
    "scale_rewards": "group",
    "mask_truncated_completions": False,
    "dynamic_sampling": False,
}
PPO: dict[str, Any] = {
    **SAMPLED,
    "kl_coef": 0.05,
    "kl_estimator": "k1",
    "kl_target": None,
    "kl_horizon": 10_000,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "entropy_coef": 0.0,
    "gamma": 1.0,
    "lam": 0.95,
    "whiten_rewards": False,
    "num_ppo_epochs": 4,
}


class LossFacts(NamedTuple):
    """keys: of `objective`, with the default of each (None: null is one);  sft_weight: that of its likelihood term."""

    stage: str
    keys: dict[str, Any]
    sft_weight: float = 0.0


LOSSES = {
    "sigmoid": LossFacts("dpo", {**SMOOTHED}),
    "ipo": LossFacts("dpo", {**BETA}),
    "hinge": LossFacts("dpo", {**BETA}),
    "robust": LossFacts("dpo", {"beta": 0.1, "label_smoothing": 0.1}),
    "exo_pair": LossFacts("dpo", {"beta": 0.1, "label_smoothing": 1e-3}),
    "nca_pair": LossFacts("dpo", {**BETA}),
    "bco_pair": LossFacts("dpo", {**BETA}),
    "sppo_hard": LossFacts("dpo", {**BETA}),
    "aot": LossFacts("dpo", {**SMOOTHED}),
    "apo_zero": LossFacts("dpo", {**BETA}),
    "apo_down": LossFacts("dpo", {**BETA}),
    "discopop": LossFacts("dpo", {"beta": 0.1, "tau": 0.05}),
    "sigmoid_norm": LossFacts("dpo", {**BETA}),
    "simpo": LossFacts("dpo", {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0}),
    "orpo": LossFacts("dpo", {**BETA}, sft_weight=1.0),
    "cpo": LossFacts("dpo", {**SMOOTHED}, sft_weight=1.0),
    "kto": LossFacts("kto", {**UNPAIRED}),
    "apo_zero_unpaired": LossFacts("kto", {**UNPAIRED}),
    "bradley_terry": LossFacts("reward", {"center_rewards_coefficient": None}),
    "ppo": LossFacts("ppo", PPO),
    "grpo": LossFacts("grpo", GROUPS),
    "dr_grpo": LossFacts("grpo", {**GROUPS, "scale_rewards": "none"}),
    "dapo": LossFacts("grpo", {**GROUPS, "epsilon_high": 0.28, "dynamic_sampling": True}),
    "gspo": LossFacts("grpo", {**GROUPS, "epsilon": 3e-4, "epsilon_high": 4e-4}),
    "rloo": LossFacts("rloo", {**RATIOS, "beta": 0.05, "normalize_advantages": False}),
}
OWN = LossFacts("dpo", {**SMOOTHED, "gamma": None, "tau": None})
DEFAULT: dict[str, tuple[str, ...]] = {
    "sft": (),
    "dpo": ("sigmoid",),
    "kto": ("kto",),
    "reward": ("bradley_terry",),
    "ppo": ("ppo",),
    "grpo": ("grpo",),
    "rloo": ("rloo",),
}


def stage_of(stage: str | None, losses: tuple[str, ...] | None) -> str:
    """The stage of a recipe: as given, else that of its losses, else sft."""
    return stage or (facts_of(losses[0]).stage if losses else "sft")


def losses_of(stage: str, losses: tuple[str, ...] | None) -> tuple[str, ...]:
    """The losses as given, else that of the stage."""
    return losses or DEFAULT[stage]


def is_loss(name: str) -> bool:
    return name in LOSSES or USERS_OWN.fullmatch(name) is not None


def facts_of(loss: str) -> LossFacts:
    """A function of the user's own is one over pairs, and may take whatever another one does."""
    return OWN if USERS_OWN.fullmatch(loss) else LOSSES[loss]


def keys_of(losses: tuple[str, ...]) -> dict[str, Any]:
    """The keys that any of the losses takes, each with the default of the first that does."""
    keys: dict[str, Any] = {}
    for loss in losses:
        facts = facts_of(loss)
        extra = {"sft_weight": facts.sft_weight, "loss_weights": None} if facts.stage == "dpo" else {}
        keys = {**facts.keys, **extra, **keys}
    if "sft_weight" in keys:  # what one of them needs, the whole has
        keys["sft_weight"] = max(facts_of(loss).sft_weight for loss in losses)
    return keys
