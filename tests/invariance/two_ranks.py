"""One of two processes that train together: the step of each objective, held against that of one process alone.

Started by test_two_ranks.py. Argument: the file for the findings of this process.
"""

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from preference_steps import (
    add_reference,
    examples_of,
    labelled_rows,
    move,
    objective_of,
    pair_rows,
    reward_model,
    save_reward_model,
)
from test_rollout_layouts import OBJECTIVES
from test_rollout_layouts import prepared as prepared_online
from tiny import PAD_ID, chat_rows, tiny_model, worst_tensor
from torch import Tensor, nn

from tunekit.data.rows import Example
from tunekit.models.adapters import add_lora
from tunekit.models.policy import Policy
from tunekit.models.scorer import Scorer
from tunekit.objectives.objective import Objective
from tunekit.objectives.sft import SFT
from tunekit.train.engine import Engine, whole
from tunekit.train.evaluate import held_out_loss
from tunekit.train.ranks import join
from tunekit.train.sharding import shard
from tunekit.train.step import StepResult, backward, update

KEYS: dict[str, dict[str, Any]] = {
    "dpo": {"loss": ["sigmoid"]},
    "kto": {"undesirable_weight": 0.5},
    "reward": {"center_rewards_coefficient": 0.1},
}
SIZES = (1, 2, 1, 3, 2)  # rows of the micro-batches of the step: of five, one process has three and the other two


def prepared(stage: str, lora: bool, folder: Path) -> tuple[Policy, Objective, Sequence[Example]]:
    """A policy, its objective, and at least nine examples of it."""
    if stage in OBJECTIVES:
        actor, sampled = prepared_online(stage, "llama", lora=lora)
        return actor, OBJECTIVES[stage], sampled
    model: nn.Module = tiny_model("llama")
    if stage == "reward":
        model = reward_model(folder / "reward")
    if lora:
        torch.manual_seed(0)
        settings = {"target_modules": "all-linear", "task_type": "SEQ_CLS" if stage == "reward" else "CAUSAL_LM"}
        model = add_lora(model, r=4, alpha=8.0, dropout=0.0, **settings)  # type: ignore[arg-type]
    policy = (Scorer if stage == "reward" else Policy)(model, torch.float32, PAD_ID)
    policy.prove(chat_rows(2))
    if stage == "sft":
        move(policy)
        return policy, SFT, chat_rows(9)
    examples = examples_of(labelled_rows(9) if stage == "kto" else pair_rows(9))
    if stage != "reward":
        add_reference(policy, examples, (stage, lora))
    move(policy)
    return policy, objective_of(folder, stage, **KEYS[stage]), examples[:]


def cut(rows: Sequence[Example]) -> Iterator[list[Example]]:
    start = 0
    for size in SIZES:
        yield list(rows[start : start + size])
        start += size


def gradients(policy: Policy) -> dict[str, Tensor]:
    return {name: whole(each.grad).clone() for name, each in policy.named_parameters() if each.grad is not None}


def step(
    policy: Policy, objective: Objective, micro_batches: Sequence[Any], engine: Engine, passes: int, spare: Any = None
) -> StepResult:
    policy.train().zero_grad()
    batches = [policy.batch(rows) for rows in micro_batches]
    return backward(policy, objective, batches, engine, [spare] * (passes - len(batches)))


def norm(tensors: dict[str, Tensor]) -> float:
    return float(torch.stack([each.double().square().sum() for each in tensors.values()]).sum().sqrt())


def compare(stage: str, strategy: str, lora: bool, engine: Engine, folder: Path) -> dict[str, Any]:
    """The relative differences of two processes to one: of the loss, of the worst gradient, of clipping, held out."""
    policy, objective, rows = prepared(stage, lora, folder)
    micro_batches = list(cut(rows))
    alone = step(policy, objective, micro_batches, Engine(), len(micro_batches))
    expected = gradients(policy)
    step(policy, objective, micro_batches[:1], Engine(), 1)
    expected_of_few = gradients(policy)
    measured = {} if stage in OBJECTIVES else held_out_loss(policy, objective, rows, 2)
    if strategy == "fsdp2":
        shard(policy, engine)
    mine = micro_batches[engine.rank :: engine.world_size]
    spare = policy.batch(rows[:1])
    few = micro_batches[:1]  # of which the other process has none
    step(policy, objective, few[engine.rank :: 2], engine, 1, spare)
    less = gradients(policy)
    together = step(policy, objective, mine, engine, len(micro_batches[0::2]), spare)
    found = gradients(policy)
    total = norm(expected)
    trained = [each for each in policy.parameters() if each.requires_grad]
    clipped = update(together, trained, torch.optim.SGD(trained, lr=0.0), 0.1)
    there = {} if stage in OBJECTIVES else held_out_loss(policy, objective, rows, 2, engine=engine)
    assert together.metrics.keys() == alone.metrics.keys() and there.keys() == measured.keys()
    return {
        "loss": abs(together.loss - alone.loss) / max(1.0, abs(alone.loss)),
        "gradients": worst_tensor(found, expected),
        "gradients, one rank idle": worst_tensor(less, expected_of_few),
        "norm": abs(clipped.grad_norm - total) / total,
        "metrics": max([abs(together.metrics[n] - v) / max(1, abs(v)) for n, v in alone.metrics.items()], default=0.0),
        "held out": max([abs(there[name] - value) / max(1, abs(value)) for name, value in measured.items()], default=0),
        "counts": [together.weight == alone.weight, together.num_tokens == alone.num_tokens],
        "finite": math.isfinite(alone.loss) and total > 0,
    }


def main(results: Path) -> None:
    engine, found = Engine(ranks=join()), {}
    with tempfile.TemporaryDirectory() as folder:
        save_reward_model("llama", Path(folder) / "reward", PAD_ID)  # of a group only the first process saves
        engine.form(60, "two ranks")
        for stage in ("sft", "dpo", "kto", "reward", "ppo", "grpo", "rloo"):
            for strategy in ("ddp", "fsdp2"):
                for lora in (False, True):
                    name = f"{stage} {strategy} {'lora' if lora else 'full'}"
                    found[name] = compare(stage, strategy, lora, engine, Path(folder))
    results.write_text(json.dumps(found))
    engine.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
