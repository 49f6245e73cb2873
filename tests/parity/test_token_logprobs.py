"""Chunked log-probabilities are log_softmax and gather: in value, in the gradient of hidden states and of the head."""

import pytest
import torch
from torch import Tensor

from tunekit.ops.logprobs import CHUNK, token_logprobs

WIDTH, VOCABULARY = 24, 101


def inputs(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, targets and an upstream gradient that differs from row to row."""
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (rows,), generator=generator)
    return hidden, weight, targets, torch.randn(rows, generator=generator)


def whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax((hidden @ weight.T).float(), -1).gather(1, targets[:, None]).squeeze(1)


def exact(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values and gradients in fp64, by autograd."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logprobs = torch.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None]).squeeze(1)
    return logprobs.detach(), *torch.autograd.grad(logprobs, (hidden, weight), upstream.double())


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("rows", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 88])
def test_values_and_gradients_at_the_borders_of_chunks(rows: int) -> None:
    hidden, weight, targets, upstream = inputs(rows)
    logprobs = token_logprobs(hidden, weight, targets)
    found = (logprobs.detach(), *torch.autograd.grad(logprobs, (hidden, weight), upstream))
    for ours, theirs in zip(found, exact(hidden, weight, targets, upstream), strict=True):
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape
        assert relative(ours, theirs) < 2e-6


def test_equal_to_log_softmax_in_the_same_dtype() -> None:
    hidden, weight, targets, upstream = inputs(300)
    results = []
    for function in (token_logprobs, whole):
        logprobs = function(hidden, weight, targets)
        results.append((logprobs.detach(), *torch.autograd.grad(logprobs, (hidden, weight), upstream)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


def test_bfloat16_errs_no_more_than_log_softmax_on_bfloat16_logits() -> None:
    hidden, weight, targets, upstream = inputs(300, torch.bfloat16)
    expected = exact(hidden, weight, targets, upstream)
    errors = []
    for function in (token_logprobs, whole):
        logprobs = function(hidden, weight, targets)
        found = (logprobs.detach(), *torch.autograd.grad(logprobs, (hidden, weight), upstream))
        assert [x.dtype for x in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
        errors.append([relative(ours, theirs) for ours, theirs in zip(found, expected, strict=True)])
    # The same bf16 logits, and everything after them in fp32.
    torch.testing.assert_close(token_logprobs(hidden, weight, targets), whole(hidden, weight, targets))
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 1.5 * theirs + 1e-3


def test_the_head_alone_and_the_hidden_states_alone_can_be_trained() -> None:
    hidden, weight, targets, upstream = inputs(CHUNK + 5)
    expected = exact(hidden, weight, targets, upstream)
    token_logprobs(hidden.detach(), weight, targets).backward(upstream)
    assert weight.grad is not None and relative(weight.grad, expected[2]) < 2e-6
    token_logprobs(hidden, weight.detach(), targets).backward(upstream)
    assert hidden.grad is not None and relative(hidden.grad, expected[1]) < 2e-6
