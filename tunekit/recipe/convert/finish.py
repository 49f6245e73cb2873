"""What a draft still lacks when every key was seen: the tool's own defaults, and what must go together."""

from __future__ import annotations

from typing import Any

from tunekit.recipe.convert.draft import Draft, default_of
from tunekit.recipe.foreign import AXOLOTL, LLAMA_FACTORY, TRL

# What the tools do where a config says nothing, and where a recipe that says nothing does something else.
DEFAULTS: dict[str, dict[str, Any]] = {
    AXOLOTL: {
        "data.max_length": 512,
        "data.overlong": "drop",
        "data.eval_split": 0,
        "train.num_train_epochs": 1,
        "train.per_device_train_batch_size": 1,
    },
    LLAMA_FACTORY: {
        "adapter.type": "lora",
        "adapter.r": 8,
        "data.max_length": 2048,
        "data.overlong": "truncate",
        "data.eval_split": 0,
        "train.learning_rate": 5e-5,
        "train.lr_scheduler_type": "linear",
        "train.warmup_ratio": 0.0,
        "train.activation_checkpointing": True,
    },
    TRL: {
        "adapter.alpha": 32,
        "adapter.dropout": 0.05,
        "data.max_length": 1024,
        "data.overlong": "truncate",
        "data.eval_split": 0,
        "train.learning_rate": 2e-5,
        "train.lr_scheduler_type": "linear",
        "train.warmup_ratio": 0.0,
        "train.activation_checkpointing": True,
    },
}
TARGETS = "an adapter is on all linear layers; {tool} leaves it to peft, which for most models takes q_proj and v_proj"
NEEDED = {
    "model.name_or_path": "TODO: hub id or folder of the model",
    "output_dir": "TODO: folder that receives all that the run writes",
}
NEED_HELD_OUT = ("early_stopping_patience", "load_best_model_at_end", "metrics")


def finish(draft: Draft) -> None:
    _agree(draft)
    _add_defaults(draft)
    _need_held_out_rows(draft)
    for ours, todo in NEEDED.items():
        draft.values.setdefault(ours, todo)
    if not draft.train:
        draft.train.append({"path": "TODO: file, folder or hub id of the training rows"})
    if draft.values.get("data.streaming") and "train.max_steps" not in draft.values:
        draft.values["train.max_steps"] = "TODO: optimizer steps to train, since the length of a stream is not known"
    for ours in list(draft.values):
        if draft.values[ours] == default_of(ours):
            draft.withdraw(ours, f"the default of {ours}", needless=True)


def _agree(draft: Draft) -> None:
    """Values that a recipe does not take together."""
    if draft.values.get("train.warmup_steps"):
        draft.withdraw("train.warmup_ratio", "warmup_steps is given too, and wins")
    elif "train.warmup_ratio" in draft.values:
        draft.withdraw("train.warmup_steps", "warmup_ratio is given too", needless=True)
    if draft.eval:
        draft.withdraw("data.eval_split", "held-out rows are given: data.eval", needless=True)
    if draft.values.get("data.packing"):
        draft.withdraw("model.attn_implementation", "packing keeps examples apart by model.attn_implementation: auto")
    if not _has_adapter(draft):
        for ours in [key for key in draft.values if key.startswith("adapter.") and key != "adapter.type"]:
            draft.withdraw(ours, "there is no adapter", needless=True)


def _has_adapter(draft: Draft) -> bool:
    return bool(draft.values.get("adapter.type", DEFAULTS[draft.tool].get("adapter.type")) == "lora")


def _add_defaults(draft: Draft) -> None:
    lora = _has_adapter(draft)
    for ours, value in DEFAULTS[draft.tool].items():
        given = {ours, "train.warmup_steps"} if ours == "train.warmup_ratio" else {ours}
        if ours == "data.eval_split" and draft.eval:
            continue
        if given & draft.values.keys() or (ours.startswith("adapter.") and not lora):
            continue
        draft.values[ours] = value
        draft.remarks[ours] = f"{draft.tool}'s default"
    if lora and draft.tool != LLAMA_FACTORY and "adapter.target_modules" not in draft.values:
        draft.differences.append(TARGETS.format(tool=draft.tool))


def _need_held_out_rows(draft: Draft) -> None:
    if draft.eval or draft.values.get("data.eval_split") != 0:
        return
    for name in NEED_HELD_OUT:
        draft.withdraw(f"eval.{name}", "needs held-out rows; give data.eval, or data.eval_split")
