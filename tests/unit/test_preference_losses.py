"""The preference losses against analysis: published gradients, known optima, symmetries, extremes."""

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import fields, replace
from decimal import Decimal
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from tunekit.errors import RecipeError
from tunekit.objectives.kto import UNPAIRED_LOSSES, apo_zero_unpaired, kto
from tunekit.objectives.pair_losses import PAIR_LOSSES, PairLogprobs, PairLoss, nll
from tunekit.objectives.preference import Weighted, loss_of
from tunekit.objectives.reward import bradley_terry
from tunekit.recipe.losses import LOSSES, ONLINE

NAMES = list(PAIR_LOSSES)
every_loss = pytest.mark.parametrize("name", NAMES)
WEIGHTS = {"desirable_weight": 1.5, "undesirable_weight": 0.5}


def value(name: str, pairs: PairLogprobs, **given: float) -> Tensor:
    """The loss with the defaults of a recipe."""
    return PAIR_LOSSES[name].function(pairs, **{**LOSSES[name].keys, **given})


def draw(number: int = 7) -> PairLogprobs:
    torch.manual_seed(0)
    sums = [-20 * torch.rand(number, dtype=torch.float64) for _ in range(4)]
    return PairLogprobs(*sums, *[torch.randint(1, 9, (number,)).double() for _ in range(2)])


def logratios(chosen: Any, rejected: Any = 0.0) -> PairLogprobs:
    """Answers of one token with these log-ratios."""
    values = [torch.as_tensor(each, dtype=torch.float64).reshape(-1) for each in (chosen, rejected)]
    chosen, rejected = torch.broadcast_tensors(*values)
    zero = torch.zeros_like(chosen)
    return PairLogprobs(chosen, rejected, zero, zero, zero + 1, zero + 1)


def swapped(pairs: PairLogprobs) -> PairLogprobs:
    values = [getattr(pairs, each.name) for each in fields(pairs)]
    return PairLogprobs(*[values[i ^ 1] for i in range(6)])


def minimise(loss: Callable[[Tensor], Tensor], size: int) -> Tensor:
    x = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    options = {"tolerance_grad": 1e-13, "tolerance_change": 1e-16, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([x], max_iter=2000, history_size=20, **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        result = loss(x)
        result.backward()
        return result

    optimizer.step(closure)
    return x.detach()


@pytest.mark.parametrize("name", [name for name, facts in LOSSES.items() if facts.stage not in ONLINE])
def test_parameters_are_the_keys_that_a_recipe_may_give(name: str) -> None:
    known = {**{n: loss.function for n, loss in PAIR_LOSSES.items()}, **UNPAIRED_LOSSES, "bradley_terry": bradley_terry}
    assert known.keys() == {name for name, facts in LOSSES.items() if facts.stage not in ONLINE}
    parameters = inspect.signature(known[name]).parameters.values()
    assert {each.name for each in parameters if each.kind is each.KEYWORD_ONLY} == LOSSES[name].keys.keys()
    assert all(each.default is each.empty for each in parameters)


@every_loss
def test_only_a_loss_with_a_reference_depends_on_it(name: str) -> None:
    pairs = draw()
    others = replace(
        pairs, chosen_reference=pairs.chosen_reference - 1, rejected_reference=pairs.rejected_reference - 3
    )
    same = torch.equal(value(name, pairs), value(name, others))
    assert same != PAIR_LOSSES[name].needs_reference
    assert PAIR_LOSSES[name].needs_reference == (name not in ("simpo", "orpo", "cpo"))


@every_loss
def test_only_a_loss_per_token_depends_on_lengths(name: str) -> None:
    pairs = draw()
    others = replace(pairs, chosen_length=pairs.chosen_length + 1)
    assert torch.equal(value(name, pairs), value(name, others)) != PAIR_LOSSES[name].per_token


@every_loss
def test_a_step_from_the_reference_raises_the_margin(name: str) -> None:
    pairs = draw()
    start = [pairs.chosen.clone().requires_grad_(), pairs.chosen.clone().requires_grad_()]
    at = replace(
        pairs,
        chosen=start[0],
        rejected=start[1],
        chosen_reference=pairs.chosen,
        rejected_reference=pairs.chosen,
        rejected_length=pairs.chosen_length,
    )
    chosen, rejected = torch.autograd.grad(value(name, at).sum(), start)
    # DiscoPOP has a hill at 0.
    assert (((chosen - rejected).abs() > 1e-4) & ((chosen < rejected) == (name != "discopop"))).all()


@every_loss
def test_extreme_log_probabilities_give_finite_values_and_gradients(name: str) -> None:
    grid = torch.tensor(list(itertools.product([0.0, -1e-8, -1e-3, -1.0, -100.0, -1e4], repeat=4)))
    for lengths in itertools.product([1.0, 300.0], repeat=2):
        leaves = [grid[:, 0].clone().requires_grad_(), grid[:, 1].clone().requires_grad_()]
        ones = torch.ones(len(grid))
        pairs = PairLogprobs(*leaves, grid[:, 2], grid[:, 3], lengths[0] * ones, lengths[1] * ones)
        found = value(name, pairs)
        assert found.shape == ones.shape and found.dtype == torch.float32
        assert found.isfinite().all()
        assert all(each.isfinite().all() for each in torch.autograd.grad(found.sum(), leaves))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_dpo_is_ln_2_where_policy_and_reference_agree(label_smoothing: float) -> None:
    found = value("sigmoid", logratios([-3.0, 0.0, 2.0], [-3.0, 0.0, 2.0]), label_smoothing=label_smoothing)
    assert_close(found, torch.full_like(found, math.log(2)))


def test_the_gradient_of_dpo_is_the_published_one() -> None:
    """Rafailov et al. 2023, section 4: -beta sigma(r_l - r_w) (grad log pi(y_w) - grad log pi(y_l))."""
    torch.manual_seed(0)
    beta, w, rejected = 0.3, 1, 4
    features, theta = torch.randn(6, 3).double(), torch.randn(3).double().requires_grad_()
    reference = torch.randn(6).double().log_softmax(0)
    logp = (features @ theta).log_softmax(0)
    one = torch.ones(1)
    pairs = PairLogprobs(logp[[w]], logp[[rejected]], reference[[w]], reference[[rejected]], one, one)
    (found,) = torch.autograd.grad(value("sigmoid", pairs, beta=beta).sum(), theta, retain_graph=True)
    rewards = beta * (logp - reference).detach()
    up, down = (torch.autograd.grad(logp[i], theta, retain_graph=True)[0] for i in (w, rejected))
    expected = -beta * (rewards[rejected] - rewards[w]).sigmoid() * (up - down)
    assert expected.abs().max() > 0.01
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


def ordered_pairs(logp: Tensor, reference: Tensor) -> tuple[PairLogprobs, Tensor, Tensor]:
    """Every answer against every other."""
    w, rejected = torch.tensor(list(itertools.permutations(range(len(logp)), 2))).T
    ones = torch.ones(len(w), dtype=logp.dtype)
    pairs = PairLogprobs(logp[w], logp[rejected], reference[w], reference[rejected], ones, ones)
    return pairs, w, rejected


@pytest.mark.parametrize("beta", [0.25, 1.0])
@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "random"])
def test_dpo_converges_to_the_reference_tilted_by_rewards(uniform: bool, beta: float) -> None:
    torch.manual_seed(0)
    rewards = torch.randn(5, dtype=torch.float64)
    reference = (torch.zeros(5) if uniform else 2 * torch.randn(5)).double().log_softmax(0)

    def loss(logits: Tensor) -> Tensor:
        pairs, w, rejected = ordered_pairs(logits.log_softmax(0), reference)
        return ((rewards[w] - rewards[rejected]).sigmoid() * value("sigmoid", pairs, beta=beta)).mean()

    found = minimise(loss, 5).log_softmax(0)
    assert_close(found, (reference + rewards / beta).log_softmax(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_ipo_of_certain_preferences_ends_at_a_margin_of_half_over_beta(beta: float) -> None:
    reference = torch.tensor([0.9, 0.1], dtype=torch.float64).log()

    def loss(logits: Tensor) -> Tensor:
        return value("ipo", ordered_pairs(logits.log_softmax(0), reference)[0], beta=beta)[0]

    ratio = minimise(loss, 2).log_softmax(0) - reference
    assert float(ratio[0] - ratio[1]) == pytest.approx(1 / (2 * beta), abs=1e-4)


def test_ipo_and_length_normalised_dpo_take_log_ratios_per_token() -> None:
    pairs = draw()
    means = logratios(pairs.chosen_logratio / pairs.chosen_length, pairs.rejected_logratio / pairs.rejected_length)
    assert_close(value("ipo", pairs), value("ipo", means))
    assert_close(value("sigmoid_norm", pairs), value("sigmoid", means))


@pytest.mark.parametrize("name", ["sigmoid", "exo_pair", "aot"])
@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_with_label_smoothing_the_best_margin_says_how_sure_labels_are(name: str, epsilon: float) -> None:
    margin = minimise(lambda x: value(name, logratios(x), beta=0.5, label_smoothing=epsilon).sum(), 1)
    assert float((0.5 * margin).sigmoid()) == pytest.approx(1 - epsilon, abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.1, 0.4])
def test_robust_is_unbiased_over_flips_of_labels(epsilon: float) -> None:
    pairs = draw()
    kept, flipped = (value("robust", each, label_smoothing=epsilon) for each in (pairs, swapped(pairs)))
    assert_close((1 - epsilon) * kept + epsilon * flipped, value("sigmoid", pairs))
    assert (kept - value("sigmoid", pairs)).abs().max() > 1e-3


@pytest.mark.parametrize("epsilon", [1e-3, 0.2])
def test_exo_is_the_divergence_of_the_policy_from_smoothed_labels(epsilon: float) -> None:
    pairs = draw()
    policy = torch.stack([0.1 * pairs.chosen_logratio, 0.1 * pairs.rejected_logratio], 1).log_softmax(1)
    labels = torch.tensor([1 - epsilon, epsilon], dtype=torch.float64).log().expand_as(policy)
    expected = F.kl_div(labels, policy, log_target=True, reduction="none").sum(1)
    assert_close(value("exo_pair", pairs, label_smoothing=epsilon), expected)


def test_exo_without_smoothing_has_no_value() -> None:
    with pytest.raises(ValueError, match="domain"):
        value("exo_pair", draw(), label_smoothing=0.0)


@pytest.mark.parametrize("name", ["sigmoid", "cpo", "simpo"])
def test_swapping_the_answers_moves_a_logistic_loss_by_its_logit(name: str) -> None:
    pairs = draw()
    logit = {
        "sigmoid": 0.1 * pairs.margin,
        "cpo": 0.1 * (pairs.chosen - pairs.rejected),
        "simpo": 2.0 * (pairs.chosen / pairs.chosen_length - pairs.rejected / pairs.rejected_length),
    }[name]
    no_margin = {"gamma": 0.0} if name == "simpo" else {}
    assert_close(value(name, swapped(pairs), **no_margin) - value(name, pairs, **no_margin), logit)
    smoothed, flipped = (
        value(name, each, label_smoothing=epsilon, **no_margin)
        for each, epsilon in [(pairs, 0.3), (swapped(pairs), 0.7)]
    )
    assert_close(smoothed, flipped)


def test_sppo_ends_where_log_ratios_are_half_over_beta() -> None:
    ratios = minimise(lambda x: value("sppo_hard", logratios(x[:1], x[1:]), beta=0.25).sum(), 2)
    assert_close(ratios, torch.tensor([2.0, -2.0], dtype=torch.float64), rtol=0, atol=1e-6)


def test_apo_down_lowers_the_chosen_answer_too() -> None:
    """Where the margin is large enough, only the absolute term is left: unlike apo_zero, it pushes w down."""
    chosen = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    for name, sign in {"apo_down": 1, "apo_zero": -1}.items():
        (gradient,) = torch.autograd.grad(value(name, logratios(chosen, -100.0)).sum(), chosen)
        assert sign * float(gradient) > 0.02


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_aot_is_the_cheapest_matching_of_policy_and_reference_margins(label_smoothing: float) -> None:
    pairs = draw(5)
    found = value("aot", pairs, label_smoothing=label_smoothing).sum()
    costs = []
    for order in map(list, itertools.permutations(range(5))):
        reference = {"chosen_reference": pairs.chosen_reference[order]}
        matched = replace(pairs, **reference, rejected_reference=pairs.rejected_reference[order])
        assert_close(value("aot", matched, label_smoothing=label_smoothing).sum(), found)
        costs.append(value("sigmoid", matched, label_smoothing=label_smoothing).sum())
    assert_close(found, torch.stack(costs).min())
    assert float(max(costs) - min(costs)) > 0.01


@pytest.mark.parametrize("tau", [0.05, 1.0, 2.0])
def test_discopop_blends_the_logistic_into_the_exponential_loss(tau: float) -> None:
    x = torch.tensor([-100.0, -1.0, 0.0, 0.5, 20.0], requires_grad=True)
    found = value("discopop", PairLogprobs(x, *[torch.zeros(5)] * 3, *[torch.ones(5)] * 2), beta=1.0, tau=tau)
    expected = []
    for each in map(Decimal, x.tolist()):
        blend = 1 / (1 + (-each / Decimal(tau)).exp())
        expected.append(float((1 + (-each).exp()).ln() * (1 - blend) + (-each).exp() * blend))
    assert_close(found.tolist(), expected, rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.isfinite().all()
    assert (gradient[2] > 0) == (tau < (1 - math.log(2)) / 3)


def test_orpo_keeps_its_digits_for_likely_and_for_unlikely_answers() -> None:
    chosen, rejected = torch.cartesian_prod(*[-(10 ** torch.linspace(-5, 3, 33))] * 2).T

    def log_odds(x: Tensor) -> Tensor:
        return x - torch.log(-torch.expm1(x))

    ones = torch.ones_like(chosen)
    found = value("orpo", PairLogprobs(10 * chosen, 30 * rejected, *[0 * ones] * 2, 10 * ones, 30 * ones), beta=1.0)
    expected = -F.logsigmoid(log_odds(chosen.double()) - log_odds(rejected.double()))
    assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


def test_a_list_of_losses_is_their_weighted_sum_and_likelihood() -> None:
    pairs = draw()
    losses = [Weighted(PAIR_LOSSES[name], 1.0 + i, LOSSES[name].keys) for i, name in enumerate(NAMES)]
    parts = [(1 + i) * value(name, pairs) for i, name in enumerate(NAMES)]
    likelihood = torch.tensor([float(-c) / float(n) for c, n in zip(pairs.chosen, pairs.chosen_length, strict=True)])
    assert_close(nll(pairs), likelihood.double(), rtol=1e-6, atol=1e-6)
    assert_close(loss_of(losses, 0.0)(pairs), sum(parts))
    assert_close(loss_of(losses, 0.7)(pairs), sum(parts) + 0.7 * nll(pairs))
    assert_close(loss_of(losses[2:3], 0.0)(pairs), parts[2])


LABEL = torch.tensor([True, False, True, False])
RATIOS = torch.tensor([-3.0, -2.0, 4.0, 1.5], dtype=torch.float64)


def test_kto_is_half_its_weight_at_the_reference_point_and_falls_towards_the_label() -> None:
    ratios = torch.full((4,), 1.25, dtype=torch.float64, requires_grad=True)
    found = kto(ratios, LABEL, 1.25, beta=0.4, **WEIGHTS)
    weights = torch.tensor([1.5, 0.5, 1.5, 0.5], dtype=torch.float64)
    assert_close(found, weights / 2)
    (gradient,) = torch.autograd.grad(found.sum(), ratios)
    assert_close(gradient, torch.tensor([-1.0, 1.0, -1.0, 1.0]).double() * weights * 0.4 / 4)


def test_kto_depends_on_the_distance_from_the_divergence_and_apo_does_not() -> None:
    assert_close(kto(RATIOS + 2, LABEL, 2.5, beta=0.4, **WEIGHTS), kto(RATIOS, LABEL, 0.5, beta=0.4, **WEIGHTS))
    found = apo_zero_unpaired(RATIOS, LABEL, 2.5, beta=0.4, **WEIGHTS)
    assert_close(found, kto(RATIOS, LABEL, 0.0, beta=0.4, **WEIGHTS))
    assert (found - kto(RATIOS, LABEL, 2.5, beta=0.4, **WEIGHTS)).abs().min() > 1e-3


def test_apo_zero_of_a_pair_is_that_of_its_two_answers() -> None:
    pairs = draw()
    sums = [
        apo_zero_unpaired(ratio, torch.full((7,), label), 0.0, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)
        for ratio, label in [(pairs.chosen_logratio, True), (pairs.rejected_logratio, False)]
    ]
    assert_close(value("apo_zero", pairs), sums[0] + sums[1])


def test_reward_models_recover_rewards_from_preferences_and_centring_their_zero() -> None:
    torch.manual_seed(0)
    rewards = torch.randn(5, dtype=torch.float64)
    rewards -= rewards.mean()
    w, rejected = torch.tensor(list(itertools.permutations(range(5), 2))).T
    probability = (rewards[w] - rewards[rejected]).sigmoid()

    def loss(found: Tensor, center: float | None, margin: float = 0.0) -> Tensor:
        margins = torch.full_like(probability, margin)
        each = bradley_terry(found[w], found[rejected], margins, center_rewards_coefficient=center)
        return (probability * each).mean()

    def recovered(center: float | None) -> Tensor:
        return minimise(lambda x: loss(x + 3, center), 5) + 3

    plain, centred = recovered(None), recovered(1e-6)
    assert_close(plain - plain.mean(), rewards, rtol=0, atol=1e-5)
    assert float(plain.mean()) == pytest.approx(3)
    assert_close(centred, rewards, rtol=0, atol=1e-3)
    # A margin asks for as much more between the rewards.
    assert_close(
        bradley_terry(rewards[w] + 0.7, rewards[rejected], 0.7 + 0 * probability, center_rewards_coefficient=0.0),
        -F.logsigmoid(rewards[w] - rewards[rejected]),
    )


@pytest.mark.parametrize(
    "wrong", [lambda pairs: pairs.chosen.mean(), lambda pairs: pairs.chosen[:1], lambda pairs: 0.5]
)
def test_a_loss_that_does_not_give_one_number_for_each_pair_is_refused(wrong: Any) -> None:
    vectors = [torch.tensor([-3.0, -4.0])] * 4 + [torch.tensor([2.0, 2.0])] * 2
    with pytest.raises(RecipeError, match="for 2 pairs"):
        loss_of([Weighted(PairLoss(wrong, True, False))], 0.0)(PairLogprobs(*vectors))
