"""Estimates of the KL divergence of a policy from its reference, token by token, from tokens that the policy drew."""

import torch
from torch import Tensor


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Of each token, in nats, from log pi and log pi_ref of it, equal shapes (Schulman 2020, "Approximating KL

    Divergence", joschu.net/blog/kl-approx.html): `k1` is log pi - log pi_ref, unbiased and often negative; `k2` half
    its square, biased; `k3` is exp(-k1) - 1 + k1, unbiased and never negative.
    """
    ratio = logprobs - reference
    if estimator == "k1":
        return ratio
    if estimator == "k2":
        return ratio.square() / 2
    return torch.expm1(-ratio) + ratio
