"""What a draft still lacks when every key was seen: the tool's own defaults, and what must go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunekit.recipe.convert.draft import Draft, Note, default_of
from tunekit.recipe.convert.objective import defaults_of, fit_objective
from tunekit.recipe.foreign import AXOLOTL, LLAMA_FACTORY, TRL
from tunekit.recipe.show import flow

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
DOUBLE = "model.quantization: 4bit quantises its scales again; TRL does with use_bnb_nested_quant only"
NEEDED = {
    "model.name_or_path": "TODO: hub id or folder of the model",
    "output_dir": "TODO: folder that receives all that the run writes",
}
NEED_HELD_OUT = ("early_stopping_patience", "load_best_model_at_end", "metrics", "steps")
NOT_READ = (".txt", ".arrow")
# Keys of a config that ran on several processes, by how they begin.
PROCESSES = ("deepspeed", "fsdp", "ddp", "dp_", "num_gpus", "num_processes", "world_size")


def finish(draft: Draft, raw: dict[str, Any]) -> None:
    """Completes the draft of the config `raw`."""
    fit_objective(draft, raw)
    _agree(draft)
    _several_processes(draft, raw)
    _check_files(draft)
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
    draft.missing = [_with_what_holds(draft, note) for note in draft.missing]


def _with_what_holds(draft: Draft, note: Note) -> Note:
    """The note of a value that was not taken over, with the one that the recipe has now."""
    held = draft.values.get(note.ours, default_of(note.ours)) if note.ours else None
    end = "" if note.why.endswith("?") else ";"
    return note if held is None else note._replace(why=f"{note.why}{end} the recipe has {note.ours}: {flow(held)}")


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
    if "eval.metric_for_best_model" in draft.said - draft.values.keys():
        draft.withdraw("eval.greater_is_better", "it is about a metric that is not computed")
    if "eval.metrics" not in draft.values:
        draft.withdraw("eval.max_new_tokens", "it is for eval.metrics")
    if not _has_adapter(draft):
        draft.withdraw("model.quantization", "needs adapter: lora, as quantised weights cannot be trained")
        for ours in [key for key in draft.values if key.startswith("adapter.") and key != "adapter.type"]:
            draft.withdraw(ours, "there is no adapter", needless=True)

    if draft.values.get("adapter.init_lora_weights") in ("pissa", "olora"):
        draft.withdraw("model.quantization", "the adapter starts from a part of the base's own weights")
    if draft.tool == TRL and draft.values.get("model.quantization") == "4bit":
        draft.differ(DOUBLE)


def _has_adapter(draft: Draft) -> bool:
    return bool(draft.values.get("adapter.type", DEFAULTS[draft.tool].get("adapter.type")) == "lora")


def _add_defaults(draft: Draft) -> None:
    lora = _has_adapter(draft)
    for ours, value in (DEFAULTS[draft.tool] | defaults_of(draft)).items():
        given = {ours, "train.warmup_steps"} if ours == "train.warmup_ratio" else {ours}
        if given & (draft.said | draft.values.keys()) or (ours.startswith("adapter.") and not lora):
            continue
        if ours == "data.eval_split" and draft.eval:
            continue
        if ours == "data.overlong" and draft.values.get("data.max_length", 0) is None:
            continue  # null is no limit there, so that nothing is over it
        draft.values[ours] = value
        draft.remarks[ours] = f"{draft.tool}'s default"
    if lora and draft.tool != LLAMA_FACTORY and "adapter.target_modules" not in draft.values:
        draft.differ(TARGETS.format(tool=draft.tool))


def _several_processes(draft: Draft, raw: dict[str, Any]) -> None:
    if keys := [key for key, value in raw.items() if key.startswith(PROCESSES) and value]:
        draft.differ(
            f"{', '.join(keys)} {'is' if len(keys) == 1 else 'are'} for several processes: set "
            "distributed.processes to the number of GPUs that it ran on, or multiply "
            "train.gradient_accumulation_steps by it, for batches of the same size"
        )


def _check_files(draft: Draft) -> None:
    for source in draft.train + draft.eval:
        if (kind := Path(str(source["path"])).suffix) in NOT_READ:
            source["path"] = f"TODO: {source['path']} as JSONL or parquet, since {kind} files are not read"


def _need_held_out_rows(draft: Draft) -> None:
    if draft.eval or draft.values.get("data.eval_split") != 0:
        return
    for name in NEED_HELD_OUT:
        draft.withdraw(f"eval.{name}", "needs held-out rows; give data.eval, or data.eval_split")
