"""A first recipe to edit: the keys that most people set, and those that they look for next, commented out.

What is said about a key and the value that it has are those of the schema.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from tunekit.errors import RecipeError
from tunekit.recipe.hints import SECTIONS, nearest_value
from tunekit.recipe.load import load_text
from tunekit.recipe.show import flow

WIDTH = 100
MODEL = "smollm2-135m-instruct"
DATA = "data.jsonl"
ROWS = {
    "sft": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "dpo": '{"prompt": "...", "chosen": "...", "rejected": "..."}, or lists of messages',
    "kto": '{"prompt": "...", "completion": "...", "label": true}, or lists of messages',
}
ROWS["reward"] = ROWS["dpo"]
ASKED = '{"prompt": "...", "answer": "..."}, or a list of messages as the prompt'
REWARDS = {"ppo": "out/reward", "grpo": "number_match", "rloo": "number_match"}
ROWS |= dict.fromkeys(REWARDS, ASKED)


class Starter(NamedTuple):
    """short: the recipe in its shortest form;  keys: what to show of it, those that begin with # commented out."""

    short: str
    keys: tuple[str, ...]


def _starter(stage: str, *objective: str, metrics: tuple[str, ...] = ()) -> Starter:
    """`objective`, `metrics`: the keys that only this stage has."""
    online = stage in REWARDS
    more = f"rewards: {REWARDS[stage]}\n" if online else ""
    return Starter(
        f"stage: {stage}\nmodel: {{model}}\nadapter: lora\ndata: {{data}}\n{more}output_dir: out/{stage}\n",
        (
            *(() if stage == "sft" else ("stage",)),
            *("model.name_or_path", "#model.revision", "#model.dtype"),
            *("adapter.type", "adapter.r", "#adapter.alpha", "#adapter.dropout", "#adapter.target_modules"),
            *("data.train", "#data.eval", "#data.eval_split", "#data.max_length", "#data.overlong"),
            *(("#data.packing", "#data.loss_on") if stage == "sft" else ()),
            "#data.system",
            *(("rewards", *ROLLOUT) if online else ()),
            *objective,
            *("train.learning_rate", "train.num_train_epochs", "#train.max_steps", "train.per_device_train_batch_size"),
            *(() if online else ("#train.gradient_accumulation_steps",)),
            "#train.warmup_ratio",
            *("#train.activation_checkpointing", "#train.seed"),
            *("eval.per_device_eval_batch_size", "#eval.steps", *metrics),
            *("#eval.early_stopping_patience", "#eval.load_best_model_at_end"),
            *("save.steps", "#save.total_limit", "output_dir", "#report_to", "#run_name"),
        ),
    )


ROLLOUT = ("rollout.num_prompts", "rollout.num_generations", "rollout.max_new_tokens", "#rollout.temperature")
STARTERS = {
    "sft": _starter("sft", metrics=("#eval.metrics",)),
    "reward": _starter("reward", "objective.loss", "#objective.center_rewards_coefficient"),
    "dpo": _starter("dpo", "objective.loss", "objective.beta", "#objective.label_smoothing", "#objective.sft_weight"),
    "kto": _starter("kto", "objective.beta", "#objective.desirable_weight", "#objective.undesirable_weight"),
    "ppo": _starter(
        "ppo", "objective.kl_coef", "objective.num_ppo_epochs", "#objective.missing_eos_penalty", "#objective.kl_target"
    ),
    "grpo": _starter(
        "grpo", "objective.loss", "objective.beta", "#objective.num_iterations", "#objective.epsilon_high"
    ),
    "rloo": _starter("rloo", "objective.beta", "#objective.num_iterations", "#objective.normalize_advantages"),
}


def starter(stage: str = "sft", model: str = MODEL, data: str = DATA) -> str:
    """The text of a starter recipe, which loads as it is. Raises `RecipeError` for a stage that does not exist."""
    if stage not in STARTERS:
        near = nearest_value(stage, list(STARTERS))
        raise RecipeError(f"--stage {stage}: no such stage{near}", f"This version has: {', '.join(STARTERS)}.")
    for option, value in (("--model", model), ("--data", data)):
        if not value:
            raise RecipeError(f"{option} is empty")
    chosen = STARTERS[stage]
    short = chosen.short.format(model=flow(model), data=flow(data))
    values = load_text(short, "--model and --data").recipe.model_dump(mode="json")
    lines = [
        f"#  A recipe for tunekit {stage}. A key behind a # has its default here: take the # away to set it.",
        "#  All keys, with their defaults: docs/recipe.md, or tunekit schema.",
    ]
    section = None
    for key in chosen.keys:
        path = key.removeprefix("#")
        *parents, name = path.split(".")
        if parents != section:
            lines += ["", *([f"{parents[0]}:"] if parents else [])]
            section = parents
        short_forms = {"data.train": data, "rewards": REWARDS.get(stage)}
        said: Any = short_forms[path] if path in short_forms else _at(values, path)
        example = f"A row: {ROWS[stage]}" if path == "data.train" else ""
        lines += _entry(path, name, said, "  " * len(parents), example, commented=key.startswith("#"))
    return "\n".join(lines) + "\n"


def _entry(path: str, name: str, value: Any, indent: str, example: str, *, commented: bool) -> Iterator[str]:
    *parents, _ = path.split(".")
    about = SECTIONS[".".join(parents)].model_fields[name].description or ""
    for line in textwrap.wrap(about, WIDTH - len(indent), break_long_words=False, break_on_hyphens=False):
        yield f"{indent}#  {line}"
    if example:
        yield f"{indent}#  {example}"
    yield f"{indent}{'#' if commented else ''}{name}: {flow(value)}"


def _at(values: Any, path: str) -> Any:
    for part in path.split("."):
        values = values[part]
    return values
