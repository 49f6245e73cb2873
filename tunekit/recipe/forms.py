"""The short forms of a recipe and its second names, and how they are written out."""

from __future__ import annotations

from typing import Any

from tunekit.recipe.rewards import is_reward

EXTENDS = "extends"  # the key of a recipe file that names its bases; a loaded recipe has none
SHORT_FORMS = {
    "model": "name_or_path",
    "adapter": "type",
    "data": "train",
    "objective": "loss",
    "distributed": "strategy",
}  # what a section that is one word means
SECTIONS = {"reward_model": "rewards"}  # a section under its other name
SYNONYMS = {
    ("train", "gradient_checkpointing"): ("train", "activation_checkpointing"),
    ("adapter", "from"): ("adapter", "start_from"),
    ("objective", "loss_type"): ("objective", "loss"),
    ("objective", "simpo_gamma"): ("objective", "gamma"),
    ("objective", "discopop_tau"): ("objective", "tau"),
    ("objective", "rpo_alpha"): ("objective", "sft_weight"),
    ("rollout", "response_length"): ("rollout", "max_new_tokens"),
    ("rollout", "max_completion_length"): ("rollout", "max_new_tokens"),
}


def _sources(value: Any) -> Any:
    if isinstance(value, str):
        value = [value]
    return [{"path": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


def _reward(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {"function" if is_reward(value) else "model": value}


def our_name(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The path with its key, or its section, under the name that we keep."""
    path = (SECTIONS.get(path[0], path[0]), *path[1:]) if path else path
    return (*SYNONYMS.get(path[:2], path[:2]), *path[2:])


def expand(raw: Any) -> Any:
    """The recipe with its short forms (`model: x`, `data: x`, `data.train: x`, ...) in full. Idempotent."""
    if not isinstance(raw, dict):
        return raw
    raw = {SECTIONS.get(name, name) if SECTIONS.get(name) not in raw else name: value for name, value in raw.items()}
    for section, key in SHORT_FORMS.items():
        if isinstance(raw.get(section), str):
            raw[section] = {key: raw[section]}
    if isinstance(raw.get("report_to"), str):
        raw["report_to"] = [raw["report_to"]]
    if isinstance(raw.get("data"), dict):
        raw["data"] = {
            key: _sources(value) if key in ("train", "eval") else value for key, value in raw["data"].items()
        }
    for (section, theirs), (_, ours) in SYNONYMS.items():
        keys = raw.get(section)
        if isinstance(keys, dict) and theirs in keys and ours not in keys:
            raw[section] = {ours if key == theirs else key: value for key, value in keys.items()}
    if isinstance(raw.get("rewards"), str | dict):
        raw["rewards"] = [raw["rewards"]]
    if isinstance(raw.get("rewards"), list):
        raw["rewards"] = [_reward(each) for each in raw["rewards"]]
    objective = raw.get("objective")
    if isinstance(objective, dict) and isinstance(objective.get("loss"), str):
        raw["objective"] = {**objective, "loss": [objective["loss"]]}
    return raw
