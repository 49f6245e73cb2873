"""The edges of token log-probabilities: no rows, dtypes, what is alive at once. Equality to autograd: tests/parity."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tunekit.ops.logprobs import CHUNK, token_logprobs


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_rows_give_no_values_and_zero_gradients() -> None:
    hidden = torch.randn(0, 8, requires_grad=True)
    weight = torch.randn(11, 8, requires_grad=True)
    logprobs = token_logprobs(hidden, weight, torch.empty(0, dtype=torch.long))
    assert logprobs.shape == (0,) and logprobs.dtype == torch.float32
    logprobs.sum().backward()
    assert hidden.grad is not None and hidden.grad.shape == (0, 8)
    assert weight.grad is not None and torch.equal(weight.grad, torch.zeros(11, 8))


def test_a_row_is_never_moved_by_the_rows_beside_it() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(CHUNK + 3, 16), torch.randn(50, 16)
    targets = torch.randint(50, (CHUNK + 3,))
    whole = token_logprobs(hidden, weight, targets)
    hidden[:CHUNK] += 1
    assert torch.equal(token_logprobs(hidden, weight, targets)[CHUNK:], whole[CHUNK:])


def test_probabilities_sum_to_one_and_large_logits_do_not_overflow() -> None:
    weight = 100 * torch.randn(37, 8)
    hidden = (100 * torch.randn(1, 8)).expand(37, 8)
    logprobs = token_logprobs(hidden, weight, torch.arange(37))
    assert logprobs.isfinite().all()
    assert float(logprobs.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_hidden_states_take_the_dtype_of_the_head_and_their_gradient_keeps_theirs() -> None:
    hidden = torch.randn(5, 8, requires_grad=True)
    logprobs = token_logprobs(hidden, torch.randn(11, 8).bfloat16(), torch.arange(5))
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32


def test_no_tensor_is_larger_than_a_chunk_of_logits() -> None:
    rows, vocabulary = 4 * CHUNK, 300
    hidden = torch.randn(rows, 16, requires_grad=True)
    weight = torch.randn(vocabulary, 16, requires_grad=True)
    with LargestTensor() as largest:
        token_logprobs(hidden, weight, torch.randint(vocabulary, (rows,))).sum().backward()
    assert largest.elements == CHUNK * vocabulary


def test_a_frozen_head_costs_one_pass_over_the_logits() -> None:
    """Its gradient, which would need the logits again, is not made."""
    hidden = torch.randn(CHUNK, 16, requires_grad=True)
    weight = torch.randn(300, 16)
    logprobs = token_logprobs(hidden, weight, torch.randint(300, (CHUNK,)))
    with LargestTensor() as largest:
        logprobs.sum().backward()
    assert largest.elements == CHUNK * 16
