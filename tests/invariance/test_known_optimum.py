"""Online training on worlds so small that its optimum is known: PPO, GRPO and RLOO converge to it.

A prompt has 31 answers: `END`, or one of five other tokens and then one of six. The policy is a table of logits, the
reward a table of numbers; the rollouts, rows, advantages, objectives and steps are those of a run.

With a penalty on the divergence from the reference the objectives do not have one optimum but two:

- RLOO and PPO take beta k1 off the reward. At the policy that wrote the answers the gradient is that of E[r] - beta
  KL(pi || ref), whose maximum over whole answers y is pi(y) = ref(y) exp(r(y) / beta) / Z.
- GRPO adds beta k3 to the loss of each token. k3 estimates KL(pi || ref), but its derivative at the sampled token is
  (1 - ref / pi) grad log pi, and the mean of that over the policy is sum_a (pi - ref)(a|s) grad log pi(a|s), the
  gradient of KL(ref || pi), the other way round (Tang & Munos 2025, arXiv:2506.09477). A state s then
  stands still, however it came to be visited, where
      pi(a|s) c (Q(s, a) - V(s)) = beta (pi(a|s) - ref(a|s)),  c = 1 - 1 / G,
  with V = sum_a pi Q and Q the reward alone; c, because an answer is part of the mean that it is compared with. So
      pi(a|s) = ref(a|s) / (lambda(s) - c Q(s, a) / beta),
  lambda being the number that makes it sum to 1 (as in Grill et al. 2020, arXiv:2007.12509). To first order in
  1 / beta both optima are the same.

At either the gradient of each answer is 0 in the mean, so that no weighting of the answers moves it: whether they are
weighted rightly is seen away from it, where the mean gradient of rollouts is that of the objective.

Axes: P prompts, G answers to each group of them, V tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tunekit.data.batch import Batch, padded_batch
from tunekit.data.rows import Sampled, Tokens
from tunekit.objectives.objective import Objective
from tunekit.objectives.policy_gradient import grpo, ppo, rloo
from tunekit.rollout.advantages import Assigned, Generalised, Grouped, LeaveOneOut, Method
from tunekit.train.engine import Engine
from tunekit.train.step import backward

P, V, END, START = 2, 6, 0, 6  # a prompt is one token, START + its number; START as a state: nothing said yet
GROUPS, G = 4, 8  # groups of each prompt in a rollout
BETA = 0.25
SEEDS = range(5)


class Table(nn.Module):
    """A policy as a table of logits `(P, V + 1, V)` by prompt and token before, and its value function `(P, V + 1)`."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.values = nn.Parameter(torch.zeros_like(logits[..., 0]))

    def forward(self, batch: Batch) -> Tensor:
        ids = batch.input_ids
        prompts = ids[batch.predictors // ids.shape[1], 0] - START
        before = ids.flatten()[batch.predictors].clamp(max=START)
        known = torch.log_softmax(self.logits[prompts, before], -1)
        logprobs = known.gather(1, batch.targets[:, None]).squeeze(1)
        return torch.stack([logprobs, -(known.exp() * known).sum(1), self.values[prompts, before]], 1)


@dataclass
class World:
    """reference: logits;  rewards: `(P, V, V)` by first and second token, of END alone `[:, END, 0]`."""

    reference: Tensor
    rewards: Tensor

    @classmethod
    def drawn(cls, seed: int) -> "World":
        generator = torch.Generator().manual_seed(seed)
        reference = torch.randn(P, V + 1, V, generator=generator, dtype=torch.float64) / 2
        return cls(reference, torch.rand(P, V, V, generator=generator, dtype=torch.float64))


def answers(logits: Tensor) -> Tensor:
    """The distribution of answers `(P, V, V)`; END alone is `[:, END, 0]`."""
    known = logits.softmax(-1)
    whole = known[:, START, :, None] * known[:, :V]
    whole[:, END] = 0.0
    whole[:, END, 0] = known[:, START, END]
    return whole


def gibbs(world: World) -> Tensor:
    """The maximum of E[r] - beta KL(pi || ref): ref exp(r / beta) / Z."""
    weights = answers(world.reference) * (world.rewards / BETA).exp()
    return weights / weights.sum((1, 2), keepdim=True)


def standstill(world: World) -> Tensor:
    """Where GRPO with k3 in the loss stands still: the second token first, then the first, whose Q is what follows."""
    logits = world.reference.clone()
    reference = logits.softmax(-1)
    second = _balanced(reference[:, :V], world.rewards)
    follows = (second * world.rewards).sum(-1)
    follows[:, END] = world.rewards[:, END, 0]
    logits[:, :V] = second.log()
    logits[:, START] = _balanced(reference[:, START], follows).log()
    return answers(logits)


def _balanced(reference: Tensor, q: Tensor) -> Tensor:
    """ref / (lambda - c q / beta), by bisection between a sum that is too large and one that is too small."""
    scaled = (1 - 1 / G) * q / BETA
    low, high = ((scaled + shift).amax(-1, keepdim=True) for shift in (reference, 1.0))
    for _ in range(60):
        middle = (low + high) / 2
        above = (reference / (middle - scaled)).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return reference / (high - scaled)


def distance(found: Tensor, expected: Tensor) -> float:
    """Total variation, of the prompt where it is largest."""
    return float((found - expected).abs().sum((1, 2)).max() / 2)


def rollout(
    policy: Table, world: World, reference: Table | None, random: torch.Generator
) -> tuple[list[Sampled], Tensor]:
    """The rows and the rewards `(P x GROUPS, G)`: what a collector hands to a method."""
    prompts = torch.arange(P).repeat_interleave(GROUPS * G)
    known = policy.logits.detach().softmax(-1)
    first = torch.multinomial(known[prompts, START], 1, generator=random)[:, 0]
    second = torch.multinomial(known[prompts, first], 1, generator=random)[:, 0]
    ended = first == END
    rewards = world.rewards[prompts, first, torch.where(ended, 0, second)]
    columns = zip(prompts.tolist(), first.tolist(), second.tolist(), strict=True)
    rows = [row(i // G, [START + prompt, a, *([] if a == END else [b])]) for i, (prompt, a, b) in enumerate(columns)]
    batch = padded_batch(rows, END)
    with torch.no_grad():
        own = policy(batch)
        given = {"old": own[:, 0], "values": own[:, 2]}
        if reference is not None:
            given["reference"] = reference(batch)[:, 0]
    parts = {name: values.float().split(batch.counts.tolist()) for name, values in given.items()}
    rows = [replace(r, **{name: values[i].numpy() for name, values in parts.items()}) for i, r in enumerate(rows)]
    return rows, rewards.view(-1, G)


def row(group: int, ids: list[int]) -> Sampled:
    return Sampled(Tokens(np.array(ids, np.int32), np.arange(len(ids)) > 0, "world:1"), 1, group)


def by_length(rows: list[Sampled]) -> list[list[Sampled]]:
    """Two micro-batches of unequal weight: the answers of one token, and those of two."""
    parts = [[row for row in rows if len(row.tokens.ids) == length] for length in (2, 3)]
    return [part for part in parts if part]


def slope(world: World, logits: Tensor) -> Tensor:
    """The gradient of E[r] - beta KL(pi || ref) in the logits, over all answers."""
    logits = logits.clone().requires_grad_()
    found, reference = answers(logits), answers(world.reference)
    said = found > 0
    gain = world.rewards[said] - BETA * (found[said] / reference[said]).log()
    return torch.autograd.grad((found[said] * gain).sum(), logits)[0]


def slope_of_tokens(world: World, logits: Tensor) -> Tensor:
    """That of c E[r] - beta sum_s KL(ref || pi)(s), each state as often as it is visited: of GRPO with k3."""
    logits = logits.clone().requires_grad_()
    known, reference = logits.log_softmax(-1), world.reference.log_softmax(-1)
    visits = torch.ones_like(logits[..., 0])
    visits[:, :V] = known.detach()[:, START].exp()
    visits[:, END] = 0.0
    apart = visits * (reference.exp() * (reference - known)).sum(-1)
    gain = (1 - 1 / G) * (answers(logits) * world.rewards).sum() - BETA * apart.sum()
    return torch.autograd.grad(gain, logits)[0]


@dataclass(frozen=True)
class Way:
    """How a stage trains: `passes` over each of so many `rollouts`; its optimum, how near it comes, its slope."""

    method: Callable[[float], Method]
    objective: Callable[[float], Objective]
    optimum: Callable[[World], Tensor]
    slope: Callable[[World, Tensor], Tensor]
    near: float
    passes: int = 1
    rollouts: int = 200


def dr_grpo(beta: float) -> Objective:
    return grpo("dr_grpo", beta=beta, epsilon=0.2, epsilon_high=None, max_new_tokens=2)


def clipped(beta: float) -> Objective:
    return ppo(cliprange=0.2, cliprange_value=0.2, vf_coef=1.0, entropy_coef=0.0)


def reinforce(beta: float) -> Objective:
    return rloo(epsilon=0.2, epsilon_high=None)


# At the optimum of ppo and rloo all advantages are 0, and so is the noise of the gradient; the noise of k3 is not.
WAYS = {
    "ppo": Way(lambda beta: Generalised(beta, "k1", 1.0, 1.0, False), clipped, gibbs, slope, near=0.005, passes=2),
    "grpo": Way(lambda beta: Grouped("none", False), dr_grpo, standstill, slope_of_tokens, near=0.04, rollouts=400),
    "rloo": Way(lambda beta: LeaveOneOut(beta, False), reinforce, gibbs, slope, near=0.005),
}
Step = Callable[[nn.Module, Objective, Sequence[Batch], Engine], object]


def trained(way: Way, world: World, seed: int, *, beta: float = BETA, step: Step = backward) -> Tensor:
    """The answers of the policy at the end, from the reference on, at a rate that falls to 0."""
    policy, reference = Table(world.reference), Table(world.reference) if beta else None
    random = torch.Generator().manual_seed(seed)
    method, objective, engine = way.method(beta), way.objective(beta), Engine()
    optimizer = torch.optim.Adam(policy.parameters(), lr=24 / way.rollouts)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, way.rollouts)
    for _ in range(way.rollouts):
        rows, _ = method.assign(*rollout(policy, world, reference, random))
        batches = [padded_batch(part, END) for part in by_length(rows)]
        for _ in range(way.passes):
            step(policy, objective, batches, engine)
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return answers(policy.logits.detach())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", WAYS)
def test_training_converges_to_the_known_optimum(name: str, seed: int) -> None:
    way, world = WAYS[name], World.drawn(seed)
    optimum = way.optimum(world)
    assert distance(answers(world.reference), optimum) > 0.3
    assert distance(trained(way, world, seed), optimum) < way.near


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", WAYS)
def test_without_a_reference_all_is_put_on_the_best_answer(name: str, seed: int) -> None:
    world = World.drawn(seed)
    best = gibbs(world) == gibbs(world).amax((1, 2), keepdim=True)
    clear = World(world.reference, torch.where(best, 1.0, world.rewards / 2))
    assert answers(clear.reference)[best].max() < 0.3
    found = trained(replace(WAYS[name], rollouts=60), clear, seed, beta=0.0)
    assert found[best].min() > 0.95


def test_the_optimum_of_whole_answers_is_the_largest_value_of_the_objective() -> None:
    """The closed form, against policies near it; that of GRPO is no maximum of it, and in this world far from it."""
    world = World.drawn(0)
    optimum, reference = gibbs(world), answers(world.reference)

    def objective(found: Tensor) -> Tensor:
        return (found * (world.rewards - BETA * (found / reference).log().nan_to_num(0.0))).sum()

    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = optimum * torch.exp(0.01 * torch.randn(optimum.shape, generator=random))
        assert objective(other / other.sum((1, 2), keepdim=True)) < objective(optimum)
    assert distance(standstill(world), optimum) > 0.1
    assert objective(standstill(world)) < objective(optimum) - 0.01


class At(Generalised):
    """PPO written anew for this world, the reward at the token `place`."""

    place = -1

    def assign(self, rows: Sequence[Sampled], rewards: Tensor) -> Assigned:
        returns = []
        for each, reward in zip(rows, rewards.flatten().tolist(), strict=True):
            gained = -self.kl_coef * (each.old - each.reference)  # type: ignore[operator]
            gained[self.place] += reward
            returns.append(np.cumsum(gained[::-1])[::-1].copy())
        raw = [total - each.values for total, each in zip(returns, rows, strict=True)]
        mean, spread = np.concatenate(raw).mean(), np.concatenate(raw).std() + 1e-8
        return [
            replace(each, advantages=(own - mean) / spread, returns=total, weight=len(own))
            for each, own, total in zip(rows, raw, returns, strict=True)
        ], {}


class First(At):
    place = 0


def test_a_reward_that_is_not_at_the_last_token_would_be_seen() -> None:
    way, world = WAYS["ppo"], World.drawn(0)
    last = trained(replace(way, method=lambda beta: At(beta, "k1", 1.0, 1.0, False)), world, 0)
    first = trained(replace(way, method=lambda beta: First(beta, "k1", 1.0, 1.0, False)), world, 0)
    assert distance(last, gibbs(world)) < way.near
    assert distance(first, gibbs(world)) > 20 * way.near


def mean_of_means(policy: nn.Module, objective: Objective, batches: Sequence[Batch], engine: Engine) -> None:
    for batch in batches:
        (objective.terms(policy(batch), batch, 0.0).loss_sum / batch.weight / len(batches)).backward()


def mean_gradient(way: Way, world: World, step: Step) -> Tensor:
    """The direction that `step` goes in, over many rollouts of a policy that is not the reference."""
    policy, reference = Table(World.drawn(100).reference), Table(world.reference)
    random, method, objective = torch.Generator().manual_seed(0), way.method(BETA), way.objective(BETA)
    for _ in range(300):
        rows, _ = method.assign(*rollout(policy, world, reference, random))
        step(policy, objective, [padded_batch(part, END) for part in by_length(rows)], Engine())
    assert policy.logits.grad is not None
    return -policy.logits.grad / policy.logits.grad.norm()


@pytest.mark.parametrize("name", WAYS)
def test_the_mean_gradient_is_that_of_the_objective_and_a_mean_of_means_would_be_seen(name: str) -> None:
    world = World.drawn(0)
    exact = WAYS[name].slope(world, World.drawn(100).reference)
    exact /= exact.norm()
    found = [float((mean_gradient(WAYS[name], world, step) - exact).norm()) for step in (backward, mean_of_means)]
    assert found[0] < 0.05
    assert found[1] > 0.25
