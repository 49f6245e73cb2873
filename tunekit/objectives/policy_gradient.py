"""Policy gradients from sampled answers: PPO, GRPO and its variants, RLOO.

The policy gives `(N, 3)` for the N trained tokens of a batch: log-probability, entropy, value (see models/actor.py).
"""

import torch
from torch import Tensor

from tunekit.data.batch import Batch
from tunekit.objectives.objective import Objective, Terms, total
from tunekit.ops.divergence import kl_estimate
from tunekit.ops.logprobs import answer_sums

RATIO_LIMIT = 20.0  # of a log-ratio, before it is exponentiated: one answer that is so far off may not be all of a step


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(log_ratio): Schulman et al. 2017 (arXiv:1707.06347, equation

    7), with another bound upwards where Yu et al. 2025 (arXiv:2503.14476, equation 10) have one.
    """
    ratio = log_ratio.clamp(max=RATIO_LIMIT).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, cliprange: float) -> Tensor:
    """max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2 (Ziegler et al. 2019, arXiv:1909.08593, their code;

    Huang et al. 2024, arXiv:2403.17031, detail 7.3).
    """
    clipped = torch.clamp(values, old - cliprange, old + cliprange)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2


def ppo(*, cliprange: float, cliprange_value: float, vf_coef: float, entropy_coef: float) -> Objective:
    """Token by token: surrogate + vf_coef x value loss - entropy_coef x entropy; the weight of an answer is its tokens.

    Schulman et al. 2017 (arXiv:1707.06347, equation 9).
    """

    def terms(output: Tensor, batch: Batch, kl: float) -> Terms:
        logprobs, entropies, values = output.unbind(1)
        given = batch.sampled
        surrogate = clipped_surrogate(log_ratio := logprobs - given["old"], given["advantages"], cliprange, cliprange)
        value_loss = clipped_value_loss(values, given["values"], given["returns"], cliprange_value)
        loss = surrogate + vf_coef * value_loss - entropy_coef * entropies
        watched = _watched(log_ratio, given, cliprange, cliprange)
        with torch.no_grad():
            far = (values - given["values"]).abs() > cliprange_value
        watched |= {"policy_loss": total(surrogate), "value_loss": total(value_loss), "value_clipped": total(far)}
        if entropy_coef:
            watched["entropy_trained"] = total(entropies)
        return Terms(loss.sum(), watched, _extremes(log_ratio))

    return Objective(terms)


def grpo(loss: str, *, beta: float, epsilon: float, epsilon_high: float | None, max_new_tokens: int) -> Objective:
    """Group-relative policy optimisation, each answer's advantage the same at all its tokens, beta x k3 added.

    grpo:    mean over the tokens of an answer, then over answers (Shao et al. 2024, arXiv:2402.03300, equation 3)
    dr_grpo: sum over the tokens, divided by the same `max_new_tokens` for all (Liu et al. 2025, arXiv:2503.20783)
    dapo:    mean over all tokens (Yu et al. 2025, arXiv:2503.14476, equation 8); the weight of an answer is its tokens
    gspo:    one ratio for each answer, the geometric mean of those of its tokens (Zheng et al. 2025, arXiv:2507.18071,
             equation 5)
    """
    high = epsilon if epsilon_high is None else epsilon_high

    def terms(output: Tensor, batch: Batch, kl: float) -> Terms:
        logprobs, given, counts = output[:, 0], batch.sampled, batch.counts
        log_ratio = logprobs - given.get("old", logprobs.detach())
        if loss == "gspo":
            log_ratio = _spread(answer_sums(log_ratio, counts) / counts, counts)
        per_token = clipped_surrogate(log_ratio, given["advantages"], epsilon, high)
        watched = _watched(log_ratio, given, epsilon, high)
        if beta:
            divergence = kl_estimate(logprobs, given["reference"], "k3")
            per_token = per_token + beta * divergence
            watched["kl_token"] = total(divergence)
        return Terms(_reduced(per_token, counts, loss, max_new_tokens), watched, _extremes(log_ratio))

    return Objective(terms)


def _reduced(per_token: Tensor, counts: Tensor, loss: str, max_new_tokens: int) -> Tensor:
    if loss == "dapo":
        return per_token.sum()
    if loss == "dr_grpo":
        return per_token.sum() / max_new_tokens
    return (answer_sums(per_token, counts) / counts).sum()


def rloo(*, epsilon: float, epsilon_high: float | None) -> Objective:
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv:2402.14740), an answer being one action.

    The ratio of the probabilities of the whole answer is clipped as in PPO; at the first pass over a rollout it is 1
    and the gradient that of REINFORCE.
    """
    high = epsilon if epsilon_high is None else epsilon_high

    def terms(output: Tensor, batch: Batch, kl: float) -> Terms:
        logprobs, given, counts = output[:, 0], batch.sampled, batch.counts
        log_ratio = logprobs - given.get("old", logprobs.detach())
        first = torch.cumsum(counts, 0) - counts
        whole, advantages = answer_sums(log_ratio, counts), given["advantages"][first]
        surrogate = clipped_surrogate(whole, advantages, epsilon, high)
        watched = _watched(log_ratio, given, epsilon, high)
        watched["clip_fraction"] = total(_clipped(whole, advantages, epsilon, high))
        return Terms(surrogate.sum(), watched, _extremes(log_ratio))

    return Objective(terms)


def _spread(per_answer: Tensor, counts: Tensor) -> Tensor:
    """A value for each answer at each of its tokens `(N,)`."""
    return per_answer.repeat_interleave(counts)


@torch.no_grad()
def _watched(log_ratio: Tensor, given: dict[str, Tensor], low: float, high: float) -> dict[str, Tensor]:
    """approx_kl: nats a token from the policy at the rollout, as k3;  clip_fraction: tokens whose gradient is cut."""
    return {
        "approx_kl": total(kl_estimate(torch.zeros_like(log_ratio), log_ratio, "k3")),
        "clip_fraction": total(_clipped(log_ratio, given["advantages"], low, high)),
    }


@torch.no_grad()
def _clipped(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    ratio = log_ratio.clamp(max=RATIO_LIMIT).exp()
    return ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))


@torch.no_grad()
def _extremes(log_ratio: Tensor) -> dict[str, Tensor]:
    """The largest ratio of probabilities, and one over the smallest."""
    return {"ratio_max": log_ratio.max().exp(), "ratio_inverse_max": (-log_ratio).max().exp()}
