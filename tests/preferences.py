"""What the tests of whole preference runs share: pairs and labelled answers made of real conversations, and recipes."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tiny import CHAT

from tunekit.models import export
from tunekit.recipe.load import load
from tunekit.stages import reward_artefact


def pairs(count: int = 20) -> list[dict[str, Any]]:
    """The shortest conversations, the answer of each against that of the next one."""
    lines = sorted(CHAT.read_text(encoding="utf-8").splitlines(), key=len)[:count]
    chats = [json.loads(line)["messages"] for line in lines]
    return [
        {"prompt": chat[:-1], "chosen": chat[-1:], "rejected": other[-1:]}
        for chat, other in zip(chats, [*chats[1:], chats[0]], strict=True)
    ]


def labelled(count: int = 20) -> list[dict[str, Any]]:
    """Wanted and unwanted answers in turn."""
    names = ("chosen", "rejected")
    return [
        {"prompt": pair["prompt"], "completion": pair[names[i % 2]], "label": i % 2 == 0}
        for i, pair in enumerate(pairs(count))
    ]


def chats(count: int = 20) -> list[dict[str, Any]]:
    return [{"messages": [*pair["prompt"], *pair["chosen"]]} for pair in pairs(count)]


def questions(count: int = 20) -> list[dict[str, Any]]:
    """The prompts of the conversations, each with its number as the answer."""
    return [{"prompt": pair["prompt"], "answer": str(i)} for i, pair in enumerate(pairs(count))]


ONLINE = ("ppo", "grpo", "rloo")
ROWS = {"sft": chats, "dpo": pairs, "kto": labelled, "reward": pairs, **dict.fromkeys(ONLINE, questions)}


# Rewards that answers of random bytes differ in.
ASKED = {
    "rewards": "[{function: regex, pattern: '[a-z]'}, {function: length, target: 4, weight: 0.5}]",
    "rollout": "{num_prompts: 4, num_generations: 4, max_new_tokens: 8}",
    "limits": "{kl: null}",
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_recipe(folder: Path, stage: str, **lines: str) -> Path:
    """A recipe over 16 rows to train on and 4 held out, two a step, into `folder/out`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ROWS[stage]()
    keys = {
        "stage": stage,
        "model": "{name_or_path: tiny-random/llama, dtype: float32}",
        "adapter": "lora",
        "data": f"{{train: {write_rows(folder / 'train.jsonl', rows[4:])}, "
        f"eval: {write_rows(folder / 'eval.jsonl', rows[:4])}}}",
        "train": "{max_steps: 4, per_device_train_batch_size: 2, learning_rate: 0.01}",
        "output_dir": str(folder / "out"),
        **(ASKED if stage in ONLINE else {}),
        **lines,
    }
    path = folder / f"{stage}.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return path


def run(recipe: Path, stage: str, *overrides: str, **options: Any) -> dict[str, Any]:
    """The run in this process."""
    result: dict[str, Any] = import_module(f"tunekit.stages.{stage}").run(load(recipe, overrides, stage), **options)
    return result


def unprove(patch: pytest.MonkeyPatch) -> None:
    """Leaves out the proofs of the artefacts, which cost a process of seconds a run and say nothing about training."""
    patch.setattr(export, "verify_in_fresh_process", lambda *arguments: 0.0)
    patch.setattr(reward_artefact, "verify", lambda *arguments: (0.0, 0.0))


def result_of(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result
