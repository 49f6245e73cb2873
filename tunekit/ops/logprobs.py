"""Log-probabilities of chosen tokens without ever holding `[tokens, vocabulary]`.

Axes: N positions that are scored, E hidden width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK = 256  # rows of logits alive at once: 256 x 49152 x 4 bytes = 50 MB


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target], one chunk of rows at a time.

    The log-probability of a token depends on its own row of `hidden` alone: its Jacobian, weight[target] - p @ weight,
    is made in the forward pass while the chunk's probabilities p are at hand, and the backward pass only scales it. The
    gradient of `weight` needs the upstream gradient first: it is recomputed chunk by chunk, and only if asked for.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        jacobian = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), CHUNK):
            rows = slice(start, start + CHUNK)
            probs = torch.log_softmax((hidden[rows] @ weight.T).float(), -1)
            logprobs[rows] = probs.gather(1, targets[rows, None]).squeeze(1)
            if jacobian is not None:
                jacobian[rows] = _minus_expectation(probs, targets[rows]).to(weight.dtype) @ weight
        ctx.save_for_backward(hidden, weight, targets, jacobian)
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, targets, jacobian = ctx.saved_tensors
        grad_hidden = None if jacobian is None else jacobian * grad[:, None].to(jacobian.dtype)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            for start in range(0, len(targets), CHUNK):
                rows = slice(start, start + CHUNK)
                probs = torch.log_softmax((hidden[rows] @ weight.T).float(), -1)
                grad_logits = _minus_expectation(probs, targets[rows]) * grad[rows, None]
                grad_weight += (grad_logits.T.to(weight.dtype) @ hidden[rows]).float()
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None


def _minus_expectation(logprobs: Tensor, targets: Tensor) -> Tensor:
    """one_hot(target) - softmax(logits), made in place of `logprobs (rows, V)`."""
    gradient = logprobs.exp_().neg_()
    gradient[torch.arange(len(targets), device=targets.device), targets] += 1
    return gradient


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Log-probability, in nats and fp32, of `targets (N,)` under softmax(`hidden (N, E)` @ `weight (V, E)`.T): `(N,)`.

    Matrix products run in the dtype of `weight`, the softmax in fp32. Peak memory is one chunk of logits, not N rows.
    """
    return _TokenLogprobs.apply(hidden.to(weight.dtype), weight, targets)


def answer_sums(logprobs: Tensor, counts: Tensor) -> Tensor:
    """The log-probability `(A,)` of each answer from those of its tokens, `counts (A,)` in turn of `logprobs (N,)`."""
    return torch.stack([each.sum() for each in logprobs.split(counts.tolist())])
