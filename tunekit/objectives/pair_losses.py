"""Losses of preference alignment: from the log-probabilities of two answers to the loss of each pair.

Each is one function of `PairLogprobs`; its keyword-only parameters are keys of a recipe's `objective` section. pi is
the policy, pi_ref the reference, w the chosen answer, l the rejected one. A log-ratio is log pi(y|x) - log pi_ref(y|x),
the margin that of the chosen answer less that of the rejected one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogprobs:
    """Of P pairs, each `(P,)`: summed log-probabilities of the answers in nats, under the policy and the reference
    (zeros where no loss needs one), and tokens of the answers.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_reference: Tensor
    rejected_reference: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @property
    def chosen_logratio(self) -> Tensor:
        return self.chosen - self.chosen_reference

    @property
    def rejected_logratio(self) -> Tensor:
        return self.rejected - self.rejected_reference

    @property
    def margin(self) -> Tensor:
        return self.chosen_logratio - self.rejected_logratio

    @property
    def margin_per_token(self) -> Tensor:
        """The margin of log-ratios that are means over the tokens of each answer."""
        return self.chosen_logratio / self.chosen_length - self.rejected_logratio / self.rejected_length


@dataclass(frozen=True)
class PairLoss:
    """function: (pairs, parameters) -> `(P,)`;  needs_reference: else those values are zeros;  per_token: whether the
    reward that it implies is a mean over the tokens of an answer.
    """

    function: Callable[..., Tensor]
    needs_reference: bool
    per_token: bool


PAIR_LOSSES: dict[str, PairLoss] = {}


def pair_loss(*, reference: bool, per_token: bool = False) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Registers a loss under the name of its function."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        PAIR_LOSSES[function.__name__] = PairLoss(function, reference, per_token)
        return function

    return register


def nll(pairs: PairLogprobs) -> Tensor:
    """-log pi(w|x) / |w|: the term that keeps chosen answers likely (Pang et al. 2024, arXiv:2404.19733, equation 1).

    A mean over the tokens of each answer and then over pairs, so that long answers do not outweigh short ones.
    """
    return -pairs.chosen / pairs.chosen_length


def _smoothed(logits: Tensor, label_smoothing: float) -> Tensor:
    """-log sigma(logits), where a share `label_smoothing` of the labels is taken to be flipped."""
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


@pair_loss(reference=True)
def sigmoid(pairs: PairLogprobs, *, beta: float, label_smoothing: float) -> Tensor:
    """-log sigma(beta margin): DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    With label smoothing it is conservative DPO: the best margin is then finite, where sigma(beta margin) = 1 - epsilon.
    """
    return _smoothed(beta * pairs.margin, label_smoothing)


@pair_loss(reference=True, per_token=True)
def ipo(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """(margin - 1 / (2 beta))^2: IPO (Azar et al. 2023, arXiv:2310.12036, equation 17), whose tau is beta here.

    Log-ratios are means over the tokens of each answer, as in TRL (which says that it asked the authors).
    """
    return (pairs.margin_per_token - 1 / (2 * beta)) ** 2


@pair_loss(reference=True)
def hinge(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """max(0, 1 - beta margin): SLiC's loss on log-ratios, hinge-norm of RSO (Liu et al. 2023, arXiv:2309.06657)."""
    return torch.relu(1 - beta * pairs.margin)


@pair_loss(reference=True)
def robust(pairs: PairLogprobs, *, beta: float, label_smoothing: float) -> Tensor:
    """DPO's loss without bias where a share epsilon of the labels is flipped (Chowdhury et al. 2024, arXiv:2403.00409).

    ((1 - epsilon) L(margin) - epsilon L(-margin)) / (1 - 2 epsilon): its mean over flips is L of the true labels.
    """
    kept, flipped = -F.logsigmoid(beta * pairs.margin), -F.logsigmoid(-beta * pairs.margin)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


@pair_loss(reference=True)
def exo_pair(pairs: PairLogprobs, *, beta: float, label_smoothing: float) -> Tensor:
    """KL(p_theta || p_r) over the two answers: EXO (Ji et al. 2024, arXiv:2402.00856, equation 16).

    p_theta is sigma(beta margin) for the chosen one, p_r is 1 - epsilon; epsilon must be above 0.
    """
    logits = beta * pairs.margin
    chosen = logits.sigmoid() * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    return chosen + (-logits).sigmoid() * (F.logsigmoid(-logits) - math.log(label_smoothing))


@pair_loss(reference=True)
def nca_pair(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """NCA for pairs (Chen et al. 2024, arXiv:2402.05369): each answer against noise, which keeps w from falling.

    -log sigma(r_w) - (log sigma(-r_w) + log sigma(-r_l)) / 2 with r = beta log-ratio.
    """
    chosen, rejected = beta * pairs.chosen_logratio, beta * pairs.rejected_logratio
    return -F.logsigmoid(chosen) - 0.5 * (F.logsigmoid(-chosen) + F.logsigmoid(-rejected))


@pair_loss(reference=True)
def bco_pair(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """-log sigma(r_w) - log sigma(-r_l) with r = beta log-ratio: BCO (Jung et al. 2024, arXiv:2404.04656), no shift."""
    return -F.logsigmoid(beta * pairs.chosen_logratio) - F.logsigmoid(-beta * pairs.rejected_logratio)


@pair_loss(reference=True)
def sppo_hard(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """SPPO with preference probabilities 1 and 0 (Wu et al. 2024, arXiv:2405.00675, equation 4.7); beta is 1 / eta.

    Log-ratios are drawn to 1 / (2 beta) and -1 / (2 beta), by squares.
    """
    return (pairs.chosen_logratio - 0.5 / beta) ** 2 + (pairs.rejected_logratio + 0.5 / beta) ** 2


@pair_loss(reference=True)
def aot(pairs: PairLogprobs, *, beta: float, label_smoothing: float) -> Tensor:
    """Distributional alignment by optimal transport, paired (Melnyk et al. 2024, arXiv:2406.05882).

    The sorted margins of the policy are to dominate the sorted margins of the reference, rank by rank: it compares the
    pairs of a batch with each other and is no sum over pairs.
    """
    policy = (pairs.chosen - pairs.rejected).sort().values
    reference = (pairs.chosen_reference - pairs.rejected_reference).sort().values
    return _smoothed(beta * (policy - reference), label_smoothing)


@pair_loss(reference=True)
def apo_zero(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """1 - sigma(r_w) + sigma(r_l), r = beta log-ratio: APO-zero (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7).

    For chosen answers that are better than what the model writes: up with them, down with the rejected.
    """
    return 1 - (beta * pairs.chosen_logratio).sigmoid() + (beta * pairs.rejected_logratio).sigmoid()


@pair_loss(reference=True)
def apo_down(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """sigma(r_w) + 1 - sigma(beta margin): APO-down (D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 8).

    For chosen answers that are worse than what the model writes: down with both, more with the rejected.
    """
    return (beta * pairs.chosen_logratio).sigmoid() + 1 - (beta * pairs.margin).sigmoid()


@pair_loss(reference=True)
def discopop(pairs: PairLogprobs, *, beta: float, tau: float) -> Tensor:
    """The log-ratio modulated loss of DiscoPOP (Lu et al. 2024, arXiv:2406.08414, equation 5).

    The logistic loss of beta margin, blended into the exponential one by sigma(beta margin / tau). It is not monotone:
    where tau is below (1 - ln 2) / 3 it rises at a margin of 0, so that the first steps lower the margin.
    """
    logits = beta * pairs.margin
    logistic = -F.logsigmoid(logits) * (-logits / tau).sigmoid()
    # Far on the wrong side the exponential alone is infinite, its product with the blend is not.
    return logistic + torch.exp(F.logsigmoid(logits / tau) - logits)


@pair_loss(reference=True, per_token=True)
def sigmoid_norm(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """-log sigma(beta margin) of log-ratios a token: length-normalised DPO (Lambert et al. 2024, arXiv:2411.15124)."""
    return -F.logsigmoid(beta * pairs.margin_per_token)


@pair_loss(reference=False, per_token=True)
def simpo(pairs: PairLogprobs, *, beta: float, gamma: float, label_smoothing: float) -> Tensor:
    """SimPO (Meng et al. 2024, arXiv:2405.14734, equation 6): log-probabilities a token, a target margin, no reference.

    -log sigma(beta (log pi(w|x) / |w| - log pi(l|x) / |l|) - gamma)
    """
    logits = beta * (pairs.chosen / pairs.chosen_length - pairs.rejected / pairs.rejected_length) - gamma
    return _smoothed(logits, label_smoothing)


@pair_loss(reference=False, per_token=True)
def orpo(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """-beta log sigma(log odds(w) - log odds(l)): ORPO's odds ratio (Hong et al. 2024, arXiv:2403.07691, equation 7).

    odds(y) = p / (1 - p), where log p is the mean log-probability a token; the likelihood term of its equation 6 is
    `sft_weight`, and beta its lambda.
    """
    chosen, rejected = pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length
    return -beta * F.logsigmoid((chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected)))


@pair_loss(reference=False)
def cpo(pairs: PairLogprobs, *, beta: float, label_smoothing: float) -> Tensor:
    """-log sigma(beta (log pi(w|x) - log pi(l|x))): CPO (Xu et al. 2024, arXiv:2401.08417, equation 3).

    Its likelihood term is `sft_weight`.
    """
    return _smoothed(beta * (pairs.chosen - pairs.rejected), label_smoothing)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, by the form that is exact on either side of -log 2 (Maechler 2012)."""
    x = x.clamp(max=-1e-7)  # an answer of probability 1 has infinite odds
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
