"""Values and gradients of the preference losses are those of TRL's own code, called on given log-probabilities.

Its trainers are made without a model, with what their losses read. TRL takes the mean over a batch, which is our sum
divided by the pairs.
"""

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from tunekit.objectives.kto import UNPAIRED_LOSSES
from tunekit.objectives.pair_losses import PAIR_LOSSES, PairLogprobs, nll
from tunekit.objectives.preference import Weighted, loss_of, watched
from tunekit.objectives.reward import bradley_terry
from tunekit.recipe.losses import LOSSES, ONLINE

PAIRS, WIDTH = 6, 9
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
WITH_REFERENCE = [name for name, loss in PAIR_LOSSES.items() if loss.needs_reference]
OTHERS = {"label_smoothing": (0.02, 0.3), "tau": (0.05, 1.0)}


@dataclass
class Answers:
    """Log-probabilities of the tokens of chosen, then rejected answers `(2P, T)`; sums under the reference `(2P,)`."""

    tokens: Tensor
    mask: Tensor
    reference: Tensor

    def pairs(self) -> PairLogprobs:
        sums, lengths = (self.tokens * self.mask).sum(1), self.mask.sum(1).to(self.tokens.dtype)
        return PairLogprobs(*sums.chunk(2), *self.reference.chunk(2), *lengths.chunk(2))


def draw(dtype: torch.dtype, equal_lengths: bool = False) -> Answers:
    torch.manual_seed(0)
    lengths = torch.full((2 * PAIRS,), WIDTH) if equal_lengths else torch.randint(1, WIDTH + 1, (2 * PAIRS,))
    mask = torch.arange(WIDTH) < lengths[:, None]
    tokens = -3 * torch.rand(2 * PAIRS, WIDTH, dtype=dtype)
    reference = (-3 * torch.rand(2 * PAIRS, WIDTH, dtype=dtype) * mask).sum(1)
    return Answers(tokens.requires_grad_(), mask, reference)


def trainer(kind: type, **settings: Any) -> Any:
    """A trainer of TRL that has nothing but its loss."""

    def whole(values: Tensor) -> Tensor:
        return values

    made = object.__new__(kind)
    vars(made).update(
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather=whole, gather_for_metrics=whole),
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        **settings,
    )
    return made


def outputs(log_probs: Tensor) -> SimpleNamespace:
    nothing = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def inputs(mask: Tensor) -> dict[str, Tensor]:
    """A prompt of one token before each answer."""
    completion = torch.cat([torch.zeros(len(mask), 1), mask], 1).long()
    return {
        "input_ids": torch.zeros_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
    }


def dpo_trainer(losses: list[str], *, weights: list[float] | None = None, **parameters: float) -> Any:
    return trainer(
        DPOTrainer,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        loss_types=losses,
        loss_weights=weights or [1.0] * len(losses),
        beta=parameters["beta"],
        label_smoothing=parameters.get("label_smoothing", 0.0),
        args=SimpleNamespace(discopop_tau=parameters.get("tau")),
    )


def dpo_loss(dpo: Any, answers: Answers) -> Tensor:
    chosen, rejected = answers.reference.chunk(2)
    batch = inputs(answers.mask) | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return dpo._compute_loss(lambda **_: outputs(answers.tokens * answers.mask), batch, False)


def ours(name: str, pairs: PairLogprobs, **parameters: float) -> Tensor:
    return PAIR_LOSSES[name].function(pairs, **parameters)


def assert_equal(found: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    """Values, and gradients with respect to `leaves`, which must not all be zero."""
    assert_close(found, expected, **CLOSE)
    gradients = [torch.autograd.grad(each.mean(), leaves, retain_graph=True) for each in (found, expected)]
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[1])
    assert_close(*gradients, **CLOSE)


def cases() -> list[Any]:
    """Each loss with several values of each parameter."""
    found = []
    for name in WITH_REFERENCE:
        grid: list[dict[str, float]] = [{"beta": beta} for beta in (0.05, 0.3, 1.0)]
        for key in LOSSES[name].keys.keys() - {"beta"}:
            values = (0.0,) if name == "sigmoid" else OTHERS[key]
            grid = [{**row, key: value} for row in grid for value in values]
        found += [pytest.param(name, row, id=f"{name}-{'-'.join(map(str, row.values()))}") for row in grid]
    return found


@DTYPES
@pytest.mark.parametrize(("name", "parameters"), cases())
def test_losses_with_a_reference_equal_those_of_dpo_trainer(
    name: str, parameters: dict[str, float], dtype: torch.dtype
) -> None:
    answers = draw(dtype)
    found = ours(name, answers.pairs(), **parameters).sum() / PAIRS
    assert_equal(found, dpo_loss(dpo_trainer([name], **parameters), answers), answers.tokens)


@DTYPES
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
def test_label_smoothing_of_dpo_is_that_of_cpo_trainer_at_log_ratios(
    label_smoothing: float, dtype: torch.dtype
) -> None:
    answers = draw(dtype)
    pairs = answers.pairs()
    cpo = trainer(CPOTrainer, alpha=0.0, loss_type="sigmoid", beta=0.3, label_smoothing=label_smoothing)
    expected = cpo.cpo_loss(pairs.chosen_logratio, pairs.rejected_logratio)[0]
    assert_equal(ours("sigmoid", pairs, beta=0.3, label_smoothing=label_smoothing), expected, answers.tokens)


def test_dpo_trainer_takes_no_label_smoothing_with_sigmoid_and_we_do() -> None:
    answers = draw(torch.float64)
    smoothed, plain = (
        dpo_loss(dpo_trainer(["sigmoid"], beta=0.3, label_smoothing=epsilon), answers) for epsilon in (0.2, 0.0)
    )
    assert torch.equal(smoothed, plain)
    found = ours("sigmoid", answers.pairs(), beta=0.3, label_smoothing=0.2).mean()
    assert_close(found - plain, 0.2 * 0.3 * answers.pairs().margin.mean(), **CLOSE)
    assert (found - plain).abs() > 1e-3


@DTYPES
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_cpo_equals_cpo_trainer(beta: float, label_smoothing: float, dtype: torch.dtype) -> None:
    answers = draw(dtype)
    pairs = answers.pairs()
    cpo = trainer(CPOTrainer, alpha=0.0, loss_type="sigmoid", beta=beta, label_smoothing=label_smoothing)
    found = ours("cpo", pairs, beta=beta, label_smoothing=label_smoothing)
    assert_equal(found, cpo.cpo_loss(pairs.chosen, pairs.rejected)[0], answers.tokens)


@DTYPES
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 0.5), (2.5, 1.4), (0.5, 0.0)])
def test_simpo_equals_cpo_trainer(beta: float, gamma: float, label_smoothing: float, dtype: torch.dtype) -> None:
    answers = draw(dtype)
    pairs = answers.pairs()
    means = pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length
    cpo = trainer(
        CPOTrainer, alpha=0.0, loss_type="simpo", beta=beta, simpo_gamma=gamma, label_smoothing=label_smoothing
    )
    found = ours("simpo", pairs, beta=beta, gamma=gamma, label_smoothing=label_smoothing)
    assert_equal(found, cpo.cpo_loss(*means)[0], answers.tokens)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo_equals_orpo_trainer(beta: float) -> None:
    answers = draw(torch.float32)  # the only precision in which TRL computes it
    pairs = answers.pairs()
    means = pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length
    expected = -trainer(ORPOTrainer, beta=beta).odds_ratio_loss(*means)[0]  # TRL subtracts it
    assert_equal(ours("orpo", pairs, beta=beta), expected, answers.tokens)


LIST = ["sigmoid", "bco_pair", "sft"]
WEIGHTS = [0.8, 0.2, 0.7]


def weighted_list(pairs: PairLogprobs) -> Tensor:
    parameters = {"sigmoid": {"beta": 0.1, "label_smoothing": 0.0}, "bco_pair": {"beta": 0.1}}
    losses = [Weighted(PAIR_LOSSES[n], w, parameters[n]) for n, w in zip(LIST[:2], WEIGHTS[:2], strict=True)]
    return loss_of(losses, WEIGHTS[2])(pairs).mean()


@DTYPES
def test_a_weighted_list_with_likelihood_equals_dpo_trainer_where_lengths_are_equal(dtype: torch.dtype) -> None:
    answers = draw(dtype, equal_lengths=True)
    expected = dpo_loss(dpo_trainer(LIST, weights=WEIGHTS, beta=0.1), answers)
    assert_equal(weighted_list(answers.pairs()), expected, answers.tokens)


def test_the_likelihood_is_a_mean_over_pairs_and_that_of_trl_one_over_tokens() -> None:
    answers = draw(torch.float64)
    pairs = answers.pairs()
    difference = weighted_list(pairs) - dpo_loss(dpo_trainer(LIST, weights=WEIGHTS, beta=0.1), answers)
    tokens = pairs.chosen_length.sum()
    assert_close(difference, WEIGHTS[2] * (nll(pairs).mean() + pairs.chosen.sum() / tokens), **CLOSE)
    assert difference.abs() > 1e-3


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_what_is_watched_of_pairs_is_what_dpo_trainer_logs(beta: float) -> None:
    answers = draw(torch.float64)
    dpo = dpo_trainer(["sigmoid"], beta=beta)
    dpo_loss(dpo, answers)
    theirs = {name: values[0] for name, values in dpo._metrics["eval"].items() if len(values) == 1}
    found = {name: float(s / n) for name, (s, n) in watched(answers.pairs(), beta, per_token=False).items()}
    names = {"accuracy": "accuracies", "margin": "margins", "reward_chosen": "chosen", "reward_rejected": "rejected"}
    for name, their_name in names.items():
        assert found[name] == pytest.approx(theirs[f"rewards/{their_name}"], abs=1e-6), name
    for which in ("chosen", "rejected"):
        assert found[f"logps_{which}"] == pytest.approx(theirs[f"logps/{which}"], rel=1e-6)
    assert 0 < found["accuracy"] < 1


@DTYPES
@pytest.mark.parametrize("shift", [-2.0, 2.0], ids=["negative", "positive"])
@pytest.mark.parametrize(("desirable_weight", "undesirable_weight"), [(1.0, 1.0), (1.5, 0.5)])
@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize("name", UNPAIRED_LOSSES)
def test_unpaired_losses_equal_kto_trainer(
    name: str, beta: float, desirable_weight: float, undesirable_weight: float, shift: float, dtype: torch.dtype
) -> None:
    answers, label = draw(dtype), torch.arange(2 * PAIRS) % 3 == 0
    mismatched = torch.randn(2 * PAIRS, WIDTH, dtype=dtype) + shift / WIDTH
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    kto = trainer(KTOTrainer, loss_type=name, calculate_KL=name == "kto", beta=beta, **weights)
    batch = inputs(answers.mask) | {"label": label, "ref_logps": answers.reference}
    batch |= {f"KL_{key}": value + 1 for key, value in inputs(answers.mask).items()}
    batch["ref_KL_logps"] = torch.zeros(2 * PAIRS, dtype=dtype)

    def model(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return outputs(mismatched if input_ids.any() else answers.tokens * answers.mask)

    expected = kto._compute_loss(model, batch, False)
    kl = max(0.0, float(mismatched.sum(1).mean()))
    assert (kl > 0.5) == (shift > 0)
    logratio = (answers.tokens * answers.mask).sum(1) - answers.reference
    found = UNPAIRED_LOSSES[name](logratio, label, kl, beta=beta, **weights)
    assert_equal(found.sum() / len(label), expected, answers.tokens)


@DTYPES
@pytest.mark.parametrize("center", [None, 0.01, 0.5])
@pytest.mark.parametrize("margins", [False, True], ids=["plain", "margins"])
def test_bradley_terry_equals_reward_trainer(margins: bool, center: float | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rewards = torch.randn(2 * PAIRS, 1, dtype=dtype, requires_grad=True)
    margin = 2 * torch.rand(PAIRS, dtype=dtype) if margins else torch.zeros(PAIRS, dtype=dtype)
    reward = trainer(RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=center))
    expected = reward.compute_loss(lambda **_: SimpleNamespace(logits=rewards), {"margin": margin} if margins else {})
    found = bradley_terry(*rewards.squeeze(1).chunk(2), margin, center_rewards_coefficient=center)
    assert_equal(found.sum() / PAIRS, expected, rewards)


def test_every_loss_of_a_recipe_is_compared() -> None:
    given = {
        name for name, facts in LOSSES.items() if facts.stage not in ONLINE
    }  # test_trl_policy_gradient.py has those
    assert given == {*WITH_REFERENCE, "cpo", "simpo", "orpo", *UNPAIRED_LOSSES, "bradley_terry"}
