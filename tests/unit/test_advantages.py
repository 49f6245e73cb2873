"""Advantages and estimates of divergence against plain loops over their definitions.

Axes: S answers, L tokens of the longest, P prompts, G answers to each.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tunekit.data.rows import Sampled, Tokens
from tunekit.ops.advantages import EPSILON, gae, group_advantages, leave_one_out, whiten
from tunekit.ops.divergence import kl_estimate
from tunekit.rollout.advantages import Generalised, Grouped, LeaveOneOut, Method

LENGTHS = (4, 1, 7, 2, 7)
NAN = float("nan")
# Groups of which all answers count, two do, one does, none does, and all are equal.
REWARDS = [[1.0, 0.0, 0.5, 3.0], [2.0, NAN, -1.0, NAN], [NAN, NAN, 5.0, NAN], [NAN] * 4, [0.3] * 4]


def ragged(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and the mask `(S, L)`; what is not of an answer is no zero."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(LENGTHS), max(LENGTHS), generator=generator, dtype=torch.float64)
    return rewards, values, torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def advantage(rewards: Sequence[float], values: Sequence[float], t: int, gamma: float, lam: float) -> float:
    """sum over l of (gamma lam)^l delta_{t+l}, and no value after the last token."""
    follows = [*values[1:], 0.0]
    delta = [r + gamma * after - v for r, after, v in zip(rewards, follows, values, strict=True)]
    return sum((gamma * lam) ** step * delta[t + step] for step in range(len(delta) - t))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.9, 0.0)])
def test_generalised_advantages_are_the_sums_that_define_them(gamma: float, lam: float) -> None:
    rewards, values, mask = ragged(0)
    found = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for i, length in enumerate(LENGTHS):
        own = rewards[i, :length].tolist(), values[i, :length].tolist()
        expected = [advantage(*own, t, gamma, lam) for t in range(length)]
        assert found[i, :length].tolist() == pytest.approx(expected, abs=1e-12)
    assert not found[~mask].any()


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_values_have_variance_1_over_the_tokens_that_count(shift_mean: bool) -> None:
    _, values, mask = ragged(1)
    values = 3 * values + 5
    found = whiten(values, mask, shift_mean=shift_mean)
    chosen = [values[i, t].item() for i, length in enumerate(LENGTHS) for t in range(length)]
    mean, spread = statistics.mean(chosen), statistics.variance(chosen)
    expected = [(each - mean) / math.sqrt(spread + 1e-8) + (0 if shift_mean else mean) for each in chosen]
    assert found[mask].tolist() == pytest.approx(expected, abs=1e-12)
    assert not found[~mask].any()
    assert statistics.variance(found[mask].tolist()) == pytest.approx(1, rel=1e-6)


def test_a_single_value_and_equal_values_are_whitened_to_zero() -> None:
    assert whiten(torch.tensor([[3.0, 9.0]]), torch.tensor([[True, False]])).tolist() == [[0.0, 0.0]]
    assert whiten(torch.full((2, 2), 3.0), torch.ones(2, 2, dtype=torch.bool)).abs().max() == 0


def counted(group: Sequence[float]) -> list[float]:
    return [reward for reward in group if not math.isnan(reward)]


def spread_of(rewards: Sequence[float]) -> float:
    return statistics.stdev(rewards) if len(rewards) > 1 else 0.0


def compared_with_group(rewards: Sequence[Sequence[float]], scale: str) -> list[list[float]]:
    everything = counted(list(itertools.chain(*rewards)))
    found = []
    for group in rewards:
        known = counted(group)
        divisor = {"none": 1.0, "group": spread_of(known) + 1e-4, "batch": spread_of(everything) + 1e-4}[scale]
        found.append([0.0 if math.isnan(r) else (r - statistics.mean(known)) / divisor for r in group])
    return found


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_are_rewards_less_the_mean_of_the_group(scale: str) -> None:
    found = group_advantages(torch.tensor(REWARDS, dtype=torch.float64), scale=scale)
    np.testing.assert_allclose(found.numpy(), compared_with_group(REWARDS, scale), rtol=0, atol=1e-12)
    assert found[0].abs().min() > 0.05 and not found[2:].any()


def compared_with_others(rewards: Sequence[Sequence[float]], normalize: bool) -> list[list[float]]:
    """NaN until the end: an answer that has no others says nothing of the spread of advantages either."""
    found = []
    for group in rewards:
        row = []
        for i, reward in enumerate(group):
            others = counted([*group[:i], *group[i + 1 :]])
            row.append(reward - statistics.mean(others) if others else NAN)
        found.append(row)
    if normalize:
        known = counted(list(itertools.chain(*found)))
        mean, spread = statistics.mean(known), statistics.stdev(known)
        found = [[(each - mean) / (spread + 1e-4) for each in row] for row in found]
    return [[0.0 if math.isnan(each) else each for each in row] for row in found]


@pytest.mark.parametrize("normalize", [False, True])
def test_leave_one_out_advantages_are_rewards_less_the_mean_of_the_others(normalize: bool) -> None:
    found = leave_one_out(torch.tensor(REWARDS, dtype=torch.float64), normalize=normalize)
    np.testing.assert_allclose(found.numpy(), compared_with_others(REWARDS, normalize), rtol=0, atol=1e-12)
    assert found[0].abs().min() > 0.05


def test_a_leave_one_out_advantage_is_that_over_the_group_times_g_over_g_minus_1() -> None:
    rewards = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, centred = leave_one_out(rewards, normalize=False), group_advantages(rewards, scale="none")
    torch.testing.assert_close(found, 5 / 4 * centred)


@pytest.mark.parametrize(
    "advantages",
    [
        lambda rewards: group_advantages(rewards, scale="group"),
        lambda rewards: group_advantages(rewards, scale="batch"),
        lambda rewards: leave_one_out(rewards, normalize=True),
    ],
    ids=["group", "batch", "leave-one-out"],
)
def test_equal_rewards_give_advantage_0_and_no_blown_up_rounding(advantages: Callable[[Tensor], Tensor]) -> None:
    """0.1 has no exact mean in fp32: what is left of it is small beside the term that is added to the deviation."""
    assert EPSILON == 1e-4
    assert advantages(torch.full((3, 7), 0.1)).abs().max() < 1e-3


def categorical(seed: int) -> tuple[Tensor, Tensor]:
    """log pi and log pi_ref of five tokens."""
    generator = torch.Generator().manual_seed(seed)
    logprobs, reference = torch.randn(2, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    return logprobs, reference


@pytest.mark.parametrize("seed", range(3))
def test_k1_and_k3_are_unbiased_and_k2_is_not(seed: int) -> None:
    """The mean over all tokens, each as often as the policy draws it, against sum p log(p / q)."""
    logprobs, reference = categorical(seed)
    p, q = logprobs.exp().tolist(), reference.exp().tolist()
    divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    means = {name: float(logprobs.exp() @ kl_estimate(logprobs, reference, name)) for name in ("k1", "k2", "k3")}
    assert divergence > 0.1
    assert means["k1"] == pytest.approx(divergence, rel=1e-12)
    assert means["k3"] == pytest.approx(divergence, rel=1e-12)
    assert means["k2"] == pytest.approx(sum(a * math.log(a / b) ** 2 / 2 for a, b in zip(p, q, strict=True)))
    assert abs(means["k2"] - divergence) > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_k1_may_be_negative_and_k2_and_k3_never_are(seed: int) -> None:
    estimates = {name: kl_estimate(*categorical(seed), name) for name in ("k1", "k2", "k3")}
    assert estimates["k1"].min() < -0.1
    assert estimates["k2"].min() > 0 and estimates["k3"].min() > 0


def test_k3_of_a_small_ratio_in_single_precision_is_half_its_square() -> None:
    """And not what is left of 1 after rounding, 6e-8."""
    found = kl_estimate(torch.tensor([1e-4, -1e-4]), torch.zeros(2), "k3")
    assert found.tolist() == pytest.approx([5e-9, 5e-9], rel=1e-2)


def answers(groups: Sequence[int], seed: int) -> list[Sampled]:
    """An answer of each of the `LENGTHS`, three ids after its prompt, with what the models give its tokens."""
    random = np.random.default_rng(seed)
    rows = []
    for group, length in zip(groups, LENGTHS, strict=True):
        tokens = Tokens(np.arange(3 + length, dtype=np.int32), np.arange(3 + length) >= 3, "a:1")
        old, reference, values = random.normal(size=(3, length)).astype(np.float32)
        rows.append(Sampled(tokens, 3, group, old=old, reference=reference, values=values))
    return rows


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("whitened", [False, True])
def test_ppo_takes_the_divergence_off_each_token_and_adds_the_reward_at_the_last(
    whitened: bool, estimator: str
) -> None:
    """The third answer failed: it has no reward, and no part in what is whitened."""
    rows, rewards = answers(range(5), 0), [1.0, -2.0, NAN, 0.5, 4.0]
    method = Generalised(0.3, estimator, 0.9, 0.8, whitened)
    found, gauges = method.assign(rows, torch.tensor(rewards, dtype=torch.float64)[:, None])
    gained = []
    for row, reward in zip(rows, rewards, strict=True):
        x = [float(a) - float(b) for a, b in zip(row.old, row.reference, strict=True)]  # type: ignore[arg-type]
        penalty = x if estimator == "k1" else [math.exp(-each) - 1 + each for each in x]
        own = [-0.3 * each for each in penalty]
        own[-1] += 0.0 if math.isnan(reward) else reward
        gained.append(own)
    if whitened:
        known = [each for i, own in enumerate(gained) if i != 2 for each in own]
        mean, deviation = statistics.mean(known), statistics.stdev(known)
        gained = [[(each - mean) / deviation + mean for each in own] for own in gained]
    raw = [
        [advantage(own, row.values.tolist(), t, 0.9, 0.8) for t in range(len(own))]  # type: ignore[union-attr]
        for own, row in zip(gained, rows, strict=True)
    ]
    known = [each for i, own in enumerate(raw) if i != 2 for each in own]
    mean, deviation = statistics.mean(known), statistics.stdev(known)
    for i, (row, own) in enumerate(zip(found, raw, strict=True)):
        assert row.weight == len(own)
        if i != 2:
            expected = np.array(own)
            assert row.advantages is not None and row.returns is not None and row.values is not None
            np.testing.assert_allclose(row.advantages, (expected - mean) / deviation, rtol=0, atol=2e-6)
            np.testing.assert_allclose(row.returns, expected + row.values, rtol=0, atol=2e-6)
    assert gauges["kl_coef"] == 0.3


def test_the_methods_of_groups_give_each_token_the_advantage_of_its_answer() -> None:
    """Two prompts with two answers each, and of RLOO beta k1 of the whole answer taken off its reward."""
    rows = answers(range(5), 1)[:4]
    rewards = torch.tensor([[1.0, 0.0], [0.25, 2.0]])
    taken = [float((row.old - row.reference).sum()) for row in rows]  # type: ignore[operator]
    penalised = [r - 0.5 * kl for r, kl in zip(rewards.flatten().tolist(), taken, strict=True)]
    cases: list[tuple[Method, list[float], Sequence[int]]] = [
        (Grouped("none", by_tokens=False), [0.5, -0.5, -0.875, 0.875], [1, 1, 1, 1]),
        (Grouped("none", by_tokens=True), [0.5, -0.5, -0.875, 0.875], LENGTHS[:4]),
        (LeaveOneOut(0.5, False), [penalised[i] - penalised[i ^ 1] for i in range(4)], [1, 1, 1, 1]),
    ]
    for method, expected, weights in cases:
        found, _ = method.assign(rows, rewards)
        assert [row.weight for row in found] == list(weights)
        for row, value, length in zip(found, expected, LENGTHS, strict=False):
            assert row.advantages is not None
            assert row.advantages.tolist() == pytest.approx([value] * length, rel=1e-5)
