"""A step of online training depends on the answers: not on layout, prompts shared or not, padding or micro-batches."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from preference_steps import own_cache
from rollout_rows import (
    PROMPTS,
    actor_of,
    give_value,
    looked_at,
    moved_from_reference,
    older,
    online_step,
    sampled_rows,
    without,
)
from tiny import relative_difference
from torch import Tensor

from tunekit.data.rows import Sampled
from tunekit.models import adapter_roles
from tunekit.models.actor import Actor
from tunekit.objectives.objective import Objective
from tunekit.objectives.policy_gradient import grpo, ppo, rloo
from tunekit.train.step import StepResult

__all__ = ["own_cache"]

RELATIVE = 1e-6
# Products of other shapes round differently. In any of the layouts the gradient in fp32 is up to 1.5e-6 away from the
# one in fp64, and that of RLOO, whose ratio is of the probabilities of whole answers, up to 7e-6.
LAYOUT, LAYOUT_OF_WHOLE_ANSWERS = 2e-6, 7e-6
TEMPERATURE = 0.7
GROUPED = {"beta": 0.1, "epsilon": 0.2, "epsilon_high": 0.28, "max_new_tokens": 16}
OBJECTIVES: dict[str, Objective] = {
    "ppo": ppo(cliprange=0.2, cliprange_value=0.2, vf_coef=0.5, entropy_coef=0.05),
    **{name: grpo(name, **GROUPED) for name in ("grpo", "dr_grpo", "dapo", "gspo")},  # type: ignore[arg-type]
    "rloo": rloo(epsilon=0.2, epsilon_high=None),
}
WEIGHTED = ("ppo", "dapo")  # an answer counts as its tokens
AGE = {"gspo": 0.8, "rloo": 0.2}  # nats a token between the policy that wrote the answers and the one that is trained
ARCHITECTURES = ["llama", "mistral", "qwen3", "gpt2"]
Step = tuple[StepResult, dict[str, Tensor]]


def prepared(name: str, arch: str, *, lora: bool = False, value_adapter: bool = False) -> tuple[Actor, list[Sampled]]:
    """An actor that has moved away from its reference, and from the policy that wrote the twelve answers."""
    actor = actor_of(arch, temperature=TEMPERATURE, entropy=name == "ppo", lora=lora)
    reference = moved_from_reference(actor)
    if name == "ppo":
        give_value(actor, adapter_roles.add_value(actor.model) if value_adapter else None)
    rows = older(looked_at(actor, reference, sampled_rows()), AGE.get(name, 0.3))
    random, found = np.random.default_rng(4), []
    for row in rows:
        count = len(row.tokens.ids) - row.prompt_length
        advantages = (
            random.normal(size=count if name == "ppo" else 1).astype(np.float32).repeat(1 if name == "ppo" else count)
        )
        returns = random.normal(size=count).astype(np.float32)
        found.append(replace(row, advantages=advantages, returns=returns, weight=count if name in WEIGHTED else 1))
    return actor, found if name == "ppo" else without(found, "values", "returns")


def assert_same(found: Step, expected: Step, gradient: float) -> None:
    assert found[0].loss == pytest.approx(expected[0].loss, rel=gradient, abs=RELATIVE)
    assert relative_difference(found[1], expected[1]) < gradient
    assert found[0].weight == expected[0].weight
    assert found[0].metrics.keys() == expected[0].metrics.keys()
    for key, metric in expected[0].metrics.items():
        assert found[0].metrics[key] == pytest.approx(metric, rel=1e-5, abs=1e-5), key


def layouts(actor: Actor, objective: Objective, rows: Sequence[Sampled]) -> list[Step]:
    """Prompts shared, not shared, and answers under each other with padding."""
    steps = []
    for actor.flat, actor.share_prompts in ((True, True), (True, False), (False, False)):
        steps.append(online_step(actor, objective, [rows]))
    actor.flat = actor.share_prompts = True
    return steps


def assert_same_in_every_layout(
    actor: Actor, objective: Objective, rows: Sequence[Sampled], bound: float = LAYOUT
) -> Step:
    shared, apart, padded = layouts(actor, objective, rows)
    assert_same(shared, padded, bound)
    assert_same(apart, padded, bound)
    assert apart[0].num_tokens == padded[0].num_tokens == shared[0].num_tokens + 3 * sum(PROMPTS)
    return padded


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_layout(name: str) -> None:
    bound = LAYOUT_OF_WHOLE_ANSWERS if name == "rloo" else LAYOUT
    step, _ = assert_same_in_every_layout(*prepared_with(name, "llama"), bound)
    assert 0.02 < step.metrics["clip_fraction"] < 0.95


def prepared_with(name: str, arch: str, **options: bool) -> tuple[Actor, Objective, list[Sampled]]:
    actor, rows = prepared(name, arch, **options)
    return actor, OBJECTIVES[name], rows


@pytest.mark.parametrize("arch", ARCHITECTURES[1:])
def test_the_layout_of_other_architectures(arch: str) -> None:
    """By the objective that has all three: log-probabilities, entropies and values."""
    assert_same_in_every_layout(*prepared_with("ppo", arch))


@pytest.mark.parametrize("value_adapter", [False, True], ids=["head", "adapter"])
def test_the_layout_with_lora(value_adapter: bool) -> None:
    _, found = assert_same_in_every_layout(*prepared_with("ppo", "llama", lora=True, value_adapter=value_adapter))
    assert "value.score.weight" in found
    assert all("lora" in name or name.startswith("value.score") for name in found)
    assert any(".value." in name for name in found) == value_adapter


def assert_same_in_every_split(
    actor: Actor, objective: Objective, rows: list[Sampled], bound: float = RELATIVE
) -> None:
    whole = online_step(actor, objective, [rows])
    orders = [range(12), [7, 2, 11, 0, 5, 9, 1, 4, 10, 3, 8, 6]]  # a prompt's answers side by side, and not
    for sizes, order in itertools.product([(12,), (1,) * 12, (3, 1, 8), (5, 7)], orders):
        answers = iter([rows[i] for i in order])
        found = online_step(actor, objective, [list(itertools.islice(answers, size)) for size in sizes])
        assert_same(found, whole, bound)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_order_and_the_micro_batches(name: str) -> None:
    actor, objective, rows = prepared_with(name, "llama")
    assert_same_in_every_split(actor, objective, rows, LAYOUT if name == "rloo" else RELATIVE)
    weights = sum(len(row.tokens.ids) - row.prompt_length for row in rows)
    assert online_step(actor, objective, [rows])[0].weight == (weights if name in WEIGHTED else 12)


def test_the_order_and_the_micro_batches_with_lora() -> None:
    assert_same_in_every_split(*prepared_with("ppo", "llama", lora=True, value_adapter=True))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_mean_of_micro_batch_means_would_be_another_gradient(name: str) -> None:
    """What the test above would not pass with."""
    actor, objective, rows = prepared_with(name, "llama")
    whole = online_step(actor, objective, [rows])[1]
    parts = [online_step(actor, objective, [part])[1] for part in (rows[:1], rows[1:])]
    means = {name: sum(part[name] for part in parts) / 2 for name in whole}
    assert relative_difference(means, whole) > 0.1  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_answer_does_not_move_the_others_by_one_bit(arch: str) -> None:
    """Three columns of each token: log-probability, entropy, value."""
    actor = actor_of(arch, temperature=TEMPERATURE, entropy=True)
    give_value(actor)
    rows = sampled_rows()
    other = rows[5].tokens.ids.copy()
    other[rows[5].prompt_length :] = (other[rows[5].prompt_length :] + 1) % 256
    changed = [*rows[:5], replace(rows[5], tokens=replace(rows[5].tokens, ids=other)), *rows[6:]]
    found = []
    for each in (rows, changed):
        batch = actor.eval().batch(each)
        found.append(actor(batch).split(batch.counts.tolist()))
    same = [torch.equal(a, b) for a, b in zip(*found, strict=True)]
    assert same == [i != 5 for i in range(12)]
