"""Every optimizer by its name: it learns, its state survives a checkpoint, it decays matrices only."""

import logging
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.training_args import OptimizerNames

from tunekit.recipe import types
from tunekit.train import checkpoint
from tunekit.train.optim import OPTIMIZERS, make_optimizer, make_schedule

# Above 4096 elements, below which bitsandbytes keeps 32 bits; and a vector.
SHAPES = {"matrix": (80, 64), "small": (4, 3), "vector": (16,)}


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(*shape, generator=generator)) for name, shape in SHAPES.items()}


def take_steps(weights: dict[str, nn.Parameter], optimizer: Optimizer, first: int, last: int) -> None:
    """Steps `first` to `last` of minimising the squares, under noise that depends on the step alone."""
    for step in range(first, last + 1):
        generator = torch.Generator().manual_seed(step)
        for weight in weights.values():
            weight.grad = weight.detach() + 0.01 * torch.randn(weight.shape, generator=generator)
        optimizer.step()


def values(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert all(torch.equal(first[name], second[name]) for name in SHAPES)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_learns_and_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path, name: str) -> None:
    weights = parameters()
    before = values(weights)
    optimizer = make_optimizer(name, weights, lr=0.01, weight_decay=0.1)
    take_steps(weights, optimizer, 1, 3)
    for key, old in before.items():
        assert weights[key].norm() < old.norm()
    checkpoint.save(tmp_path, 3, {"weights": dict(weights), "optimizer": optimizer.state_dict()}, {})
    take_steps(weights, optimizer, 4, 6)

    saved = checkpoint.load(tmp_path / "step-3")
    resumed = {key: nn.Parameter(value) for key, value in saved["weights"].items()}
    again = make_optimizer(name, resumed, lr=0.5, weight_decay=0.0)  # the saved state brings the rates with it
    again.load_state_dict(saved["optimizer"])
    take_steps(resumed, again, 4, 6)
    assert_same(values(weights), values(resumed))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_learning_rate_of_zero_changes_no_bit(name: str) -> None:
    """What trying the longest batch before a run relies on."""
    weights = parameters()
    before = values(weights)
    take_steps(weights, make_optimizer(name, weights, lr=0.0, weight_decay=0.1), 1, 2)
    assert_same(values(weights), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_matrices_are_decayed_and_vectors_are_not(name: str) -> None:
    moved = []
    for weight_decay in (0.0, 0.5):
        weights = parameters()
        take_steps(weights, make_optimizer(name, weights, lr=0.01, weight_decay=weight_decay), 1, 2)
        moved.append(values(weights))
    assert torch.equal(moved[0]["vector"], moved[1]["vector"])
    assert moved[1]["matrix"].norm() != moved[0]["matrix"].norm()
    assert moved[1]["small"].norm() != moved[0]["small"].norm()


@pytest.mark.parametrize("only", SHAPES)
def test_one_kind_of_parameter_is_enough(only: str) -> None:
    weights = {only: parameters()[only]}
    optimizer = make_optimizer("adamw_torch", weights, lr=0.01, weight_decay=0.1)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_adamw_is_torch_with_the_defaults_of_transformers() -> None:
    weights, expected = parameters(), parameters()
    take_steps(weights, make_optimizer("adamw_torch", weights, lr=0.01, weight_decay=0.0), 1, 5)
    theirs = torch.optim.AdamW(expected.values(), lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    take_steps(expected, theirs, 1, 5)
    assert_same(values(weights), values(expected))


def test_the_8_bit_states_are_8_bit() -> None:
    weights = parameters()
    optimizer = make_optimizer("adamw_8bit", weights, lr=0.01, weight_decay=0.0)
    take_steps(weights, optimizer, 1, 1)
    assert optimizer.state[weights["matrix"]]["state1"].dtype == torch.uint8
    assert optimizer.state[weights["small"]]["state1"].dtype == torch.float32


def test_the_names_are_those_of_transformers() -> None:
    assert OPTIMIZERS.keys() <= {name.value for name in OptimizerNames}


def test_a_recipe_takes_the_optimizers_there_are() -> None:
    assert set(get_args(types.Optimizer)) == set(OPTIMIZERS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA the states are paged")
def test_paging_that_does_not_happen_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tunekit"):
        make_optimizer("paged_adamw_8bit", parameters(), lr=0.1, weight_decay=0.0)
    assert "not paged" in caplog.text


def rates(name: str, warmup: int, steps: int) -> list[float]:
    """The learning rate that each of `steps` updates is made with, of a peak of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(name, optimizer, warmup_steps=warmup, num_steps=steps)
    sequence = []
    for _ in range(steps):
        sequence.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return sequence


def test_schedules_warm_up_and_fall_as_they_are_called() -> None:
    assert rates("constant", 2, 5) == [0, 0.5, 1, 1, 1]
    assert rates("linear", 2, 6) == [0, 0.5, 1, 0.75, 0.5, 0.25]
    assert rates("cosine", 0, 4) == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert rates("constant", 0, 2) == [1, 1]
