"""Loss and gradient of preference training depend on the pairs: not on layout, padding, order or micro-batches."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preference_steps import (
    add_reference,
    examples_of,
    labelled_rows,
    move,
    objective_of,
    own_cache,
    pair_rows,
    reward_model,
    save_reward_model,
    step_of,
)
from tiny import ARCHS, PAD_ID, relative_difference, tiny_model
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForSequenceClassification
from transformers.masking_utils import sdpa_mask

from tunekit.data.pairs import shared_prompt
from tunekit.data.rows import Example, Pair, Tokens
from tunekit.models.attention import SEGMENTS, segment_attention
from tunekit.models.policy import Policy
from tunekit.models.scorer import Scorer
from tunekit.objectives.objective import Objective

__all__ = ["own_cache"]

RELATIVE = 1e-6
# Products of other shapes round differently, and what the two answers share cancels: in any of the layouts the gradient
# in fp32 is up to 2.2e-6 away from the one in fp64.
LAYOUT = 2e-6
EOS = 258
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("dpo", {"loss": ["sigmoid"]}),
    "ipo": ("dpo", {"loss": ["ipo"]}),
    "kto": ("kto", {"undesirable_weight": 0.5}),
    "bradley_terry": ("reward", {"center_rewards_coefficient": 0.1}),
}
ARCHITECTURES = ["llama", "mistral", "qwen3", "gpt2"]


def policy_of(stage: str, arch: str, folder: Path) -> Policy:
    """Proven; nothing is fallen back to."""
    rows = [pair.chosen for pair in examples_of(pair_rows(2))]
    if stage == "reward":
        model = reward_model(save_reward_model(arch, folder / "reward", PAD_ID))
        for key, value in ARCHS[arch].items():
            setattr(model.config, key, value)
        policy: Policy = Scorer(model, torch.float32, PAD_ID)
    else:
        policy = Policy(tiny_model(arch, **ARCHS[arch]), torch.float32, PAD_ID)
    policy.prove(rows, pairs=True)
    assert policy.flat and policy.share_prompts
    return policy


def prepared(name: str, arch: str, folder: Path) -> tuple[Policy, Objective, Sequence[Example]]:
    """A policy that is not its reference, and seven examples."""
    stage, keys = LOSSES[name]
    policy = policy_of(stage, arch, folder)
    examples = examples_of(labelled_rows(7) if stage == "kto" else pair_rows(7, margins=stage == "reward"))
    if stage != "reward":
        add_reference(policy, examples, folder)
        move(policy.model)
    return policy, objective_of(folder, stage, **keys), examples[:]


def assert_same(found: Any, expected: Any, gradient: float = RELATIVE) -> None:
    assert found[0].loss == pytest.approx(expected[0].loss, rel=RELATIVE)
    assert relative_difference(found[1], expected[1]) < gradient


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_layout(name: str, arch: str, tmp_path: Path) -> None:
    policy, objective, examples = prepared(name, arch, tmp_path)
    once = step_of(policy, objective, [examples])
    policy.share_prompts = False
    twice = step_of(policy, objective, [examples])
    policy.flat = False
    padded = step_of(policy, objective, [examples])
    assert_same(once, padded, LAYOUT)
    assert_same(twice, padded, LAYOUT)
    assert twice[0].num_tokens == padded[0].num_tokens
    assert once[0].num_tokens < padded[0].num_tokens or name == "kto"  # which has one answer to a prompt
    window = ARCHS[arch].get("sliding_window", 0)
    assert all(each.answers[0].trained.argmax() > window for each in examples)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_and_the_micro_batches(name: str, tmp_path: Path) -> None:
    policy, objective, examples = prepared(name, "llama", tmp_path)
    whole = step_of(policy, objective, [examples])
    assert whole[0].weight == 7
    if name == "kto":
        assert whole[0].metrics["kl"] > 0.1
    for sizes, order in itertools.product([(7,), (1,) * 7, (3, 1, 3), (2, 5)], [range(7), [3, 0, 6, 2, 5, 1, 4]]):
        rows = iter([examples[i] for i in order])
        found = step_of(policy, objective, [list(itertools.islice(rows, size)) for size in sizes])
        assert_same(found, whole)
        assert found[0].metrics.keys() == whole[0].metrics.keys()
        for key, value in whole[0].metrics.items():
            assert found[0].metrics[key] == pytest.approx(value, rel=RELATIVE, abs=RELATIVE), key


def test_the_divergence_is_that_of_the_step_and_not_of_a_micro_batch(tmp_path: Path) -> None:
    """What the test above would not pass with."""
    policy, objective, examples = prepared("kto", "llama", tmp_path)
    whole = step_of(policy, objective, [examples])[0]
    parts = [step_of(policy, objective, [[each]])[0] for each in examples]
    assert sum(part.loss for part in parts) / 7 != pytest.approx(whole.loss, rel=1e-3)


@torch.no_grad()
def rewards_by_transformers(folder: Path, rows: Sequence[Tokens], pad_id: int, side: str) -> Tensor:
    """All texts in one batch; a left-padded one begins at position 0 where its padding ends."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, pad_token_id=pad_id).eval()
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(0, len(row.ids)) if side == "right" else slice(longest - len(row.ids), longest)
        ids[i, place], mask[i, place] = torch.from_numpy(row.ids).long(), 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model(ids, attention_mask=mask, position_ids=positions).logits[:, 0]


@pytest.mark.parametrize("pad_id", [PAD_ID, EOS], ids=["pad", "pad-is-eos"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_reward_is_that_of_transformers_with_left_and_right_padding(arch: str, pad_id: int, tmp_path: Path) -> None:
    """Also where the padding token is the end token and the text ends in it: it is then read before the end."""
    folder = save_reward_model(arch, tmp_path / "reward", pad_id)
    pairs = examples_of(pair_rows(5))[:]
    if pad_id == EOS:
        pairs = [replace(pair, chosen=ended(pair.chosen), rejected=ended(pair.rejected)) for pair in pairs]
    rows = [answer for pair in pairs for answer in pair.answers]
    scorer = Scorer(reward_model(folder), torch.float32, pad_id)
    scorer.prove(rows[:2], pairs=True)
    assert scorer.flat
    flat = scorer.rewards(pairs, 2).flatten()
    scorer.flat = False
    padded = scorer.rewards(pairs, 5).flatten()
    assert flat.std() > 0.1
    for side in ("right", "left"):
        expected = rewards_by_transformers(folder, rows, pad_id, side)
        torch.testing.assert_close(flat, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(padded, expected, rtol=0, atol=1e-5)


def ended(answer: Tokens) -> Tokens:
    """Cut after its end token, which the template lets a line break follow."""
    length = int(np.flatnonzero(answer.trained)[-1]) + 1
    assert answer.ids[length - 1] == EOS
    return replace(answer, ids=answer.ids[:length], trained=answer.trained[:length])


def with_other_answer(answer: Tokens) -> Tokens:
    """Other tokens in place of the trained ones, as many of them."""
    other = np.random.default_rng(1).integers(0, 256, len(answer.ids)).astype(np.int32)
    return replace(answer, ids=np.where(answer.trained, other, answer.ids))


@torch.no_grad()
def logprobs(policy: Policy, pairs: Sequence[Pair]) -> list[Tensor]:
    """Of the trained tokens of each answer, all pairs in one batch."""
    policy.eval()
    batch = policy.batch(pairs)
    return list(policy(batch).split(batch.counts.tolist()))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_answer_does_not_move_the_other_by_one_bit(arch: str, tmp_path: Path) -> None:
    policy = policy_of("dpo", arch, tmp_path)
    first, second = examples_of(pair_rows(2))[:]
    assert policy.batch([first]).prompts == (0, first.prompt_length)
    apart = logprobs(policy, [first, second])
    chosen = logprobs(policy, [replace(first, chosen=with_other_answer(first.chosen)), second])
    rejected = logprobs(policy, [replace(first, rejected=with_other_answer(first.rejected)), second])
    assert [torch.equal(a, b) for a, b in zip(apart, chosen, strict=True)] == [False, True, True, True]
    assert [torch.equal(a, b) for a, b in zip(apart, rejected, strict=True)] == [True, False, True, True]


def test_pairs_whose_prompts_share_no_token(tmp_path: Path) -> None:
    policy, objective, examples = prepared("sigmoid", "llama", tmp_path)
    first = examples[0].rejected
    other = replace(first, ids=np.concatenate([np.array([7], np.int32), first.ids[1:]]))
    apart = replace(examples[0], rejected=other, prompt_length=shared_prompt(examples[0].chosen, other))
    assert apart.prompt_length == 0
    pairs = [apart, *examples[1:3]]
    found = step_of(policy, objective, [pairs])
    policy.flat = False
    assert_same(found, step_of(policy, objective, [pairs]), LAYOUT)
    assert found[0].loss != pytest.approx(step_of(policy, objective, [examples[:3]])[0].loss, rel=1e-4)


def seeing_the_first_answer(*inputs: Any, prompts: Any = None, segments: Any = None, **options: Any) -> Any:
    """The second answer attends to all of the first segment, not to its prompt alone."""
    if prompts is not None:
        last = [segments[max(j for j in range(i + 1) if not prompts[j])] for i in range(len(prompts))]
        prompts = tuple(length if prompt else 0 for length, prompt in zip(last, prompts, strict=True))
    return segment_attention(*inputs, prompts=prompts, segments=segments, **options)


def without_the_prompt(*inputs: Any, prompts: Any = None, **options: Any) -> Any:
    return segment_attention(*inputs, **options)


@pytest.mark.parametrize("stage", ["dpo", "reward"])
@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (seeing_the_first_answer, "one example sees the other"),
        (without_the_prompt, "log-probabilities differ from those apart"),
    ],
)
def test_an_attention_that_mixes_answers_is_found_out(
    broken: Any, problem: str, stage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, examples = policy_of(stage, "llama", tmp_path), examples_of(pair_rows(3))[:]
    policy = type(whole)(whole.model, torch.float32, PAD_ID)
    whole.flat = False
    expected = step_of(whole, objective_of(tmp_path, stage), [examples])
    AttentionInterface.register(SEGMENTS, broken)
    try:
        with caplog.at_level(logging.INFO, logger="tunekit"):
            policy.prove([examples[0].chosen, examples[1].chosen], pairs=True)
        found = step_of(policy, objective_of(tmp_path, stage), [examples])
    finally:
        AttentionInterface.register(SEGMENTS, segment_attention)
        AttentionMaskInterface.register(SEGMENTS, sdpa_mask)
    assert policy.flat and not policy.share_prompts
    assert f"a prompt cannot be shared by two answers on this model ({problem})" in caplog.text
    assert_same(found, expected, LAYOUT)
