"""Supervised fine-tuning: the negative log-likelihood of the trained tokens."""

from torch import Tensor


def negative_log_likelihood(logprobs: Tensor) -> Tensor:
    """-sum log p(token | tokens before it), in nats, over the trained tokens `logprobs (N,)`; unreduced.

    Divided by the number of trained tokens of the whole step it is the token-level cross-entropy of Radford et al. 2018
    (GPT), equation 1, restricted to the trained tokens.
    """
    return -logprobs.sum()
