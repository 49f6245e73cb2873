"""The gradient of a step does not depend on how the step is cut up: not on micro-batches, layout or order of rows."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny import ARCHS, chat_rows, relative_difference, step_gradients, tiny_model, tiny_policy
from torch import Tensor

from tunekit.data.rows import Tokens
from tunekit.models.policy import Policy
from tunekit.objectives.sft import SFT
from tunekit.train.evaluate import held_out_loss

RELATIVE = 1e-6


def eight_rows() -> list[Tokens]:
    """Between 1 and all of the answer's tokens are trained, so that no two micro-batches have the same weight."""
    rows = chat_rows(8)
    uneven = []
    for i, row in enumerate(rows):
        last = np.flatnonzero(row.trained)[: max(1, int(row.trained.sum()) * i // 7)]
        trained = np.zeros_like(row.trained)
        trained[last] = True
        uneven.append(Tokens(row.ids, trained, row.source))
    assert len({int(row.trained.sum()) for row in uneven}) == 8
    return uneven


def split(rows: Sequence[Tokens], size: int) -> list[list[Tokens]]:
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(tiny_model("llama"))


@pytest.fixture(scope="module")
def whole(policy: Policy) -> tuple[float, dict[str, Tensor]]:
    result, found = step_gradients(policy, [eight_rows()])
    return result.loss, found


@pytest.mark.parametrize("size", [1, 2, 4, 3, 7])
def test_micro_batches(policy: Policy, whole: tuple[float, dict[str, Tensor]], size: int) -> None:
    result, found = step_gradients(policy, split(eight_rows(), size))
    assert result.loss == pytest.approx(whole[0], rel=RELATIVE)
    assert relative_difference(found, whole[1]) < RELATIVE
    assert result.weight == sum(int(row.trained.sum()) for row in eight_rows())
    assert result.num_tokens == sum(len(row.ids) for row in eight_rows())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_mean_of_means_is_another_gradient(
    policy: Policy, whole: tuple[float, dict[str, Tensor]], size: int
) -> None:
    """What is avoided here: the tests above would see it by a factor of ten thousand and more."""
    parts = [step_gradients(policy, [batch])[1] for batch in split(eight_rows(), size)]
    means = {name: torch.stack([part[name] for part in parts]).mean(0) for name in whole[1]}
    assert relative_difference(means, whole[1]) > 0.05


def test_the_order_of_rows(policy: Policy, whole: tuple[float, dict[str, Tensor]]) -> None:
    rows = eight_rows()
    for order in (rows[::-1], rows[3:] + rows[:3]):
        result, found = step_gradients(policy, split(order, 3))
        assert result.loss == pytest.approx(whole[0], rel=RELATIVE)
        assert relative_difference(found, whole[1]) < RELATIVE


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gpt2", "mistral", "phi3", "gpt_neox"])
def test_the_layout_of_rows(arch: str) -> None:
    policy = tiny_policy(tiny_model(arch, **ARCHS[arch]))
    flat, found = step_gradients(policy, split(eight_rows(), 4))
    assert policy.flat
    policy.flat = False  # the same attention function over padded rows, with a mask
    padded, expected = step_gradients(policy, split(eight_rows(), 4))
    assert flat.loss == pytest.approx(padded.loss, rel=RELATIVE)
    assert (flat.num_tokens, flat.weight) == (padded.num_tokens, padded.weight)
    assert relative_difference(found, expected) < RELATIVE


def test_the_head_that_projects(policy: Policy, whole: tuple[float, dict[str, Tensor]]) -> None:
    policy.chunked_head = False
    try:
        result, found = step_gradients(policy, split(eight_rows(), 4))
    finally:
        policy.chunked_head = True
    assert result.loss == pytest.approx(whole[0], rel=RELATIVE)
    assert relative_difference(found, whole[1]) < RELATIVE


def test_recomputed_activations(policy: Policy, whole: tuple[float, dict[str, Tensor]]) -> None:
    policy.causal.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        result, found = step_gradients(policy, split(eight_rows(), 4))
    finally:
        policy.causal.gradient_checkpointing_disable()
    assert result.loss == pytest.approx(whole[0], rel=RELATIVE)
    assert relative_difference(found, whole[1]) < RELATIVE


def test_the_held_out_loss_does_not_depend_on_the_batch_size_and_is_that_of_training(
    policy: Policy, whole: tuple[float, dict[str, Tensor]]
) -> None:
    losses = [held_out_loss(policy, SFT, eight_rows(), batch_size)["eval_loss"] for batch_size in (1, 3, 8)]
    assert losses == pytest.approx([whole[0]] * 3, rel=RELATIVE)
