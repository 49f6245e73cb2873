"""Twenty optimizer steps of preference training are those of TRL's trainers: losses, gradient norms, weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from preference_steps import (
    add_reference,
    examples_of,
    objective_of,
    own_cache,
    pair_rows,
    reward_model,
    save_reward_model,
)
from tiny import PAD_ID, plain_model, relative_difference, tiny_model, tiny_policy
from transformers import AutoModelForSequenceClassification
from trl_trainers import BATCH, CLIP, DECAY, RATE, STEPS, WARMUP, labelled_examples, trainer

from tunekit.data.examples import Examples
from tunekit.models.policy import Policy
from tunekit.models.scorer import Scorer
from tunekit.objectives.objective import Objective
from tunekit.train.engine import Engine
from tunekit.train.optim import make_optimizer, make_schedule
from tunekit.train.step import StepResult, backward, update

__all__ = ["own_cache"]


def our_steps(policy: Policy, objective: Objective, examples: Examples) -> list[StepResult]:
    parameters = dict(policy.model.named_parameters())
    optimizer = make_optimizer("adamw_torch", parameters, lr=RATE, weight_decay=DECAY)
    schedule = make_schedule("cosine", optimizer, warmup_steps=WARMUP, num_steps=STEPS)
    results = []
    policy.train()
    for step in range(STEPS):
        start = step * BATCH % len(examples)
        batch = policy.batch(examples[start : start + BATCH])
        result = backward(policy, objective, [batch], Engine())
        results.append(update(result, list(parameters.values()), optimizer, CLIP))
        schedule.step()
    return results


def sides(kind: str, folder: Path) -> tuple[Policy, Examples, Any]:
    """What each of the two trains, and on what: three batches, again and again."""
    count = 3 * BATCH
    if kind == "reward":
        examples = examples_of(pair_rows(count, margins=True))
        saved = save_reward_model("llama", folder / "reward", PAD_ID)
        theirs = AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.float32)
        scorer = Scorer(reward_model(saved), torch.float32, PAD_ID)
        return scorer, examples, trainer(kind, theirs, folder, examples, per_device_train_batch_size=BATCH)
    examples = labelled_examples(count, BATCH) if kind == "kto" else examples_of(pair_rows(count))
    policy = tiny_policy(tiny_model("llama"))
    add_reference(policy, examples, folder)
    theirs = plain_model("llama")
    keys = {"ref_model": plain_model("llama"), "per_device_train_batch_size": BATCH}
    return policy, examples, trainer(kind, theirs, folder, examples, **keys)


@pytest.mark.parametrize("kind", ["dpo", "kto", "reward"])
def test_twenty_steps_equal_trl(kind: str, tmp_path: Path) -> None:
    policy, examples, own = sides(kind, tmp_path)
    start = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    ours = our_steps(policy, objective_of(tmp_path, kind), examples)
    own.train()
    theirs = [row for row in own.state.log_history if "loss" in row]
    assert len(theirs) == STEPS
    assert [row.loss for row in ours] == pytest.approx([float(row["loss"]) for row in theirs], rel=1e-4)
    assert [row.grad_norm for row in ours] == pytest.approx([float(row["grad_norm"]) for row in theirs], rel=1e-3)
    assert max(row.grad_norm for row in ours) > CLIP  # clipping took part
    weights = {name: p.detach() for name, p in policy.model.named_parameters()}
    expected = {name: p.detach() for name, p in own.model.named_parameters()}
    assert relative_difference(weights, expected) < 1e-5
    assert relative_difference(start, expected) > 0.01  # and it trained
