"""Log-probabilities of chosen tokens without ever holding `[tokens, vocabulary]`.

Axes: N positions that are scored, E hidden width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = 256  # rows of logits alive at once: 256 x 49152 x 4 bytes = 50 MB


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T / temperature)[target], and the entropy of that softmax, a chunk of rows at a time.

    Both depend on the token's own row of `hidden` alone: their Jacobians, (one_hot(target) - p) @ weight and
    -p (log p + H) @ weight, are made in the forward pass while the chunk's probabilities p are at hand, and the
    backward pass only scales them. The gradient of `weight` needs the upstream gradient first: it is recomputed chunk
    by chunk, and only if asked for. Entropies are 0 unless they are asked for.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropies = torch.zeros_like(logprobs)
        jacobian = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        entropy_jacobian = torch.empty_like(hidden) if entropy and jacobian is not None else None
        for rows in _chunks(targets):
            known = _log_softmax(hidden[rows], weight, temperature)
            logprobs[rows] = known.gather(1, targets[rows, None]).squeeze(1)
            if entropy:
                entropies[rows] = -(known.exp() * known).sum(1)
            if entropy_jacobian is not None:
                entropy_jacobian[rows] = _of_entropy(known, entropies[rows]).to(weight.dtype) @ weight / temperature
            if jacobian is not None:
                jacobian[rows] = _minus_expectation(known, targets[rows]).to(weight.dtype) @ weight / temperature
        ctx.save_for_backward(hidden, weight, targets, jacobian, entropy_jacobian)
        ctx.temperature, ctx.entropy = temperature, entropy
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, targets, jacobian, entropy_jacobian = ctx.saved_tensors
        grad_hidden = None if jacobian is None else jacobian * grad[:, None].to(jacobian.dtype)
        if grad_hidden is not None and entropy_jacobian is not None:
            grad_hidden += entropy_jacobian * grad_entropy[:, None].to(jacobian.dtype)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            for rows in _chunks(targets):
                known = _log_softmax(hidden[rows], weight, ctx.temperature)
                grad_logits = torch.zeros_like(known)
                if ctx.entropy:
                    entropies = -(known.exp() * known).sum(1)
                    grad_logits += _of_entropy(known, entropies) * grad_entropy[rows, None]
                grad_logits += _minus_expectation(known, targets[rows]) * grad[rows, None]
                grad_weight += (grad_logits.T.to(weight.dtype) @ hidden[rows]).float()
            if ctx.temperature != 1.0:
                grad_weight /= ctx.temperature
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None


def _chunks(targets: Tensor) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, len(targets), CHUNK))


def _log_softmax(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = (hidden @ weight.T).float()
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, -1)


def _minus_expectation(logprobs: Tensor, targets: Tensor) -> Tensor:
    """one_hot(target) - softmax(logits), made in place of `logprobs (rows, V)`."""
    gradient = logprobs.exp_().neg_()
    gradient[torch.arange(len(targets), device=targets.device), targets] += 1
    return gradient


def _of_entropy(logprobs: Tensor, entropies: Tensor) -> Tensor:
    """The gradient of the entropy in the logits."""
    return -logprobs.exp() * (logprobs + entropies[:, None])


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability, in nats and fp32, of `targets (N,)` under softmax(`hidden (N, E)` @ `weight (V, E)`.T): `(N,)`.

    Logits are divided by `temperature`. Matrix products run in the dtype of `weight`, the softmax in fp32. Peak memory
    is one chunk of logits, not N rows.
    """
    return _TokenLogprobs.apply(hidden.to(weight.dtype), weight, targets, temperature, False)[0]


def token_logprobs_and_entropies(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`token_logprobs`, and the entropy of the distribution of each token, `(N,)` in nats; both have gradients."""
    logprobs, entropies = _TokenLogprobs.apply(hidden.to(weight.dtype), weight, targets, temperature, True)
    return logprobs, entropies


def answer_sums(logprobs: Tensor, counts: Tensor) -> Tensor:
    """The log-probability `(A,)` of each answer from those of its tokens, `counts (A,)` in turn of `logprobs (N,)`."""
    return torch.stack([each.sum() for each in logprobs.split(counts.tolist())])
