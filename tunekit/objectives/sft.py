"""Supervised fine-tuning: the negative log-likelihood of the trained tokens."""

from torch import Tensor

from tunekit.data.batch import Batch
from tunekit.objectives.objective import Objective, Terms


def negative_log_likelihood(logprobs: Tensor) -> Tensor:
    """-sum log p(token | tokens before it), in nats, over the trained tokens `logprobs (N,)`; unreduced.

    Divided by the number of trained tokens of the whole step it is the token-level cross-entropy of Radford et al. 2018
    (GPT), equation 1, restricted to the trained tokens.
    """
    return -logprobs.sum()


def _terms(logprobs: Tensor, batch: Batch, kl: float) -> Terms:
    return Terms(negative_log_likelihood(logprobs), {})


SFT = Objective(_terms)
