"""PPO's loss against a transcription of the papers' equations, case by case, in double precision.

Schulman et al. 2017 (arXiv:1707.06347), equations 7 and 9; the clipped value loss of Ziegler et al. 2019
(arXiv:1909.08593). A minimum is written as the cases of which it is made, so that each can be seen to occur.

Axes: N trained tokens, E hidden width, V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rollout_rows import actor_of, give_value, looked_at, older, online_step, sampled_rows
from tiny import plain_model, worst_tensor
from torch import Tensor

from tunekit.data.batch import Batch, padded_batch
from tunekit.data.rows import Sampled, Tokens
from tunekit.objectives.policy_gradient import RATIO_LIMIT, ppo
from tunekit.ops.logprobs import CHUNK, token_logprobs, token_logprobs_and_entropies

CLIP, CLIP_VALUE, VALUE_COEF, ENTROPY_COEF = 0.2, 0.3, 0.5, 0.01
Given = dict[str, Tensor]


def surrogate_of(logprob: Tensor, old: Tensor, advantage: Tensor) -> tuple[Tensor, str]:
    """-min(r A, clip(r) A) of one token, and which of its cases that was."""
    ratio = (logprob - old).exp()
    if advantage > 0 and ratio > 1 + CLIP:
        return -(1 + CLIP) * advantage, "cut above"
    if advantage < 0 and ratio < 1 - CLIP:
        return -(1 - CLIP) * advantage, "cut below"
    inside = "inside" if 1 - CLIP <= ratio <= 1 + CLIP else "outside, and to be moved back"
    return -ratio * advantage, inside


def value_loss_of(value: Tensor, old: Tensor, target: Tensor) -> tuple[Tensor, str]:
    """The larger of two squared errors, of the value and of the value that stays within c of what it was, halved."""
    plain = (value - target) ** 2 / 2
    if value > old + CLIP_VALUE:
        near = (old + CLIP_VALUE - target) ** 2 / 2
    elif value < old - CLIP_VALUE:
        near = (old - CLIP_VALUE - target) ** 2 / 2
    else:
        return plain, "inside"
    return (plain, "outside, and farther") if plain > near else (near, "outside, and nearer")


def transcription(output: Tensor, given: Given) -> tuple[Tensor, Counter[str], Counter[str]]:
    """The summed loss of log-probabilities, entropies and values `(N, 3)`; how often each case occurred."""
    policy_cases, value_cases = Counter[str](), Counter[str]()
    loss = output.new_zeros(())
    for i, (logprob, entropy, value) in enumerate(output):
        surrogate, policy_case = surrogate_of(logprob, given["old"][i], given["advantages"][i])
        value_loss, value_case = value_loss_of(value, given["values"][i], given["returns"][i])
        loss = loss + surrogate + VALUE_COEF * value_loss - ENTROPY_COEF * entropy
        policy_cases[policy_case] += 1
        value_cases[value_case] += 1
    return loss, policy_cases, value_cases


OURS = ppo(cliprange=CLIP, cliprange_value=CLIP_VALUE, vf_coef=VALUE_COEF, entropy_coef=ENTROPY_COEF)


def answer_of(given: dict[str, Any]) -> Batch:
    """One answer with a prompt of one token, and beside its tokens what is given."""
    count = len(given["old"])
    tokens = Tokens(np.arange(count + 1, dtype=np.int32), np.arange(count + 1) > 0, "a:1")
    columns: dict[str, Any] = {name: np.array(values, np.float64) for name, values in given.items()}
    return padded_batch([Sampled(tokens, 1, weight=count, **columns)], 0)


def with_gradient(loss: Callable[[Tensor], Tensor], output: Tensor) -> tuple[Tensor, Tensor]:
    output = output.clone().requires_grad_()
    value = loss(output)
    return value.detach(), torch.autograd.grad(value, output)[0]


def test_loss_and_gradient_are_those_of_the_equations_in_every_case() -> None:
    random = np.random.default_rng(0)
    count = 400
    given = {name: random.normal(size=count) for name in ("old", "advantages", "values", "returns")}
    batch = answer_of(given)
    near = np.stack([given["old"], random.uniform(0, 3, count), given["values"]], 1)
    output = torch.from_numpy(near + 0.5 * random.normal(size=(count, 3)))
    _, policy_cases, value_cases = transcription(output, batch.sampled)
    assert len(policy_cases) == 4 and min(policy_cases.values()) > 20
    assert len(value_cases) == 3 and min(value_cases.values()) > 20
    ours = with_gradient(lambda o: OURS.terms(o, batch, 0.0).loss_sum, output)
    theirs = with_gradient(lambda o: transcription(o, batch.sampled)[0], output)
    assert ours[0].dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    metrics = OURS.terms(output, batch, 0.0).metrics
    cut = policy_cases["cut above"] + policy_cases["cut below"]
    outside = value_cases.total() - value_cases["inside"]
    assert metrics["clip_fraction"].tolist() == [cut, count]
    assert metrics["value_clipped"].tolist() == [outside, count]


def single(ratio: float, advantage: float, value: float, target: float) -> tuple[float, list[float]]:
    """Loss and gradient of one token whose old log-probability is -1 and whose old value is 0."""
    batch = answer_of({"old": [-1.0], "advantages": [advantage], "values": [0.0], "returns": [target]})
    output = torch.tensor([[-1.0 + math.log(ratio), 2.0, value]], dtype=torch.float64)
    loss, gradient = with_gradient(lambda o: OURS.terms(o, batch, 0.0).loss_sum, output)
    return float(loss), gradient[0].tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "slope"),
    [
        (1.5, 2.0, -2.4, 0.0),  # cut: -1.2 x 2
        (0.5, -2.0, 1.6, 0.0),  # cut: 0.8 x 2
        (0.5, 2.0, -1.0, -1.0),  # worse than it was: the way back is open
        (1.5, -2.0, 3.0, 3.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.1, 0.0, 0.0, 0.0),
    ],
)
def test_the_surrogate_by_hand(ratio: float, advantage: float, surrogate: float, slope: float) -> None:
    loss, gradient = single(ratio, advantage, value=0.0, target=0.0)
    assert loss == pytest.approx(surrogate - 0.01 * 2.0)
    assert gradient == pytest.approx([slope, -0.01, 0.0])


@pytest.mark.parametrize(
    ("value", "target", "error", "slope"),
    [
        (0.2, 1.0, 0.64, -0.8),  # within c of what it was
        (0.5, 1.0, 0.49, 0.0),  # nearer than the clipped 0.3 is: no further
        (-0.5, -1.0, 0.49, 0.0),
        (0.5, 0.1, 0.16, 0.4),  # farther than the clipped one: back
        (-0.5, 1.0, 2.25, -1.5),
    ],
)
def test_the_value_loss_by_hand(value: float, target: float, error: float, slope: float) -> None:
    loss, gradient = single(1.0, 0.0, value, target)
    assert loss == pytest.approx(0.5 * error / 2 - 0.01 * 2.0)
    assert gradient == pytest.approx([0.0, -0.01, 0.5 * slope], abs=1e-12)


def test_a_ratio_beyond_all_numbers_gives_a_finite_loss_and_no_gradient_of_the_ratio() -> None:
    batch = answer_of({"old": [-200.0], "advantages": [-1.0], "values": [0.0], "returns": [0.0]})
    loss, gradient = with_gradient(lambda o: OURS.terms(o, batch, 0.0).loss_sum, torch.tensor([[-0.1, 0.0, 0.0]]))
    assert float(loss) == pytest.approx(math.exp(RATIO_LIMIT), rel=1e-5)
    assert gradient[0].tolist() == pytest.approx([0.0, -ENTROPY_COEF, 0.0])


def rewarded(rows: Sequence[Sampled]) -> list[Sampled]:
    random, found = np.random.default_rng(3), []
    for row in rows:
        count = len(row.tokens.ids) - row.prompt_length
        advantages, returns = random.normal(size=(2, count)).astype(np.float32)
        found.append(replace(row, advantages=advantages, returns=returns, weight=count))
    return found


def test_a_step_of_the_actor_is_the_equations_on_the_whole_logits_of_the_model() -> None:
    """The model of transformers alone, in double precision, an answer at a time: its logits at temperature 0.7."""
    actor = actor_of("llama", temperature=0.7, entropy=True)
    give_value(actor)
    rows = rewarded(older(looked_at(actor, None, sampled_rows()), 0.3))
    model = plain_model("llama", torch.float64)
    score = {name: p.detach().double().requires_grad_() for name, p in actor.value.score.named_parameters()}  # type: ignore[union-attr]
    outputs = []
    for row in rows:
        ids = torch.from_numpy(row.tokens.ids).long()
        known = model(ids[None], output_hidden_states=True)
        logprobs = torch.log_softmax(known.logits[0, row.prompt_length - 1 : -1] / 0.7, -1)
        values = known.hidden_states[-1][0, row.prompt_length - 1 : -1] @ score["weight"][0] + score["bias"]
        said = logprobs.gather(1, ids[row.prompt_length :, None])[:, 0]
        outputs.append(torch.stack([said, torch.distributions.Categorical(logprobs.exp()).entropy(), values], 1))
    names = ("old", "advantages", "values", "returns")
    given = {name: torch.from_numpy(np.concatenate([getattr(row, name) for row in rows])).double() for name in names}
    total, policy_cases, _ = transcription(torch.cat(outputs), given)
    loss = total / sum(len(each) for each in outputs)
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected |= {f"value.score.{name}": p.grad for name, p in score.items() if p.grad is not None}
    result, found = online_step(actor, OURS, [rows])
    assert len(policy_cases) == 4
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert worst_tensor(found, expected) < 1e-5


WIDTH, VOCABULARY, ROWS = 24, 101, CHUNK + 5
Both = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def exact(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    known = torch.log_softmax(hidden @ weight.T / temperature, -1)
    return known.gather(1, targets[:, None]).squeeze(1), -(known.exp() * known).sum(1)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, targets and upstream gradients of both results `(2, N)`."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator) / 2
    upstream = torch.randn(2, ROWS, generator=generator)
    return hidden, weight, torch.randint(VOCABULARY, (ROWS,), generator=generator), upstream


def found_by(
    both: Both, temperature: float, dtype: torch.dtype, *, tied: bool = False, trained: Sequence[str] = ("h", "w")
) -> tuple[Tensor, ...]:
    """Log-probabilities, entropies, and the gradients of a sum with weights of both in `trained`."""
    hidden, weight, targets, upstream = inputs()
    hidden, weight = (x.to(dtype).requires_grad_(name in trained) for x, name in ((hidden, "h"), (weight, "w")))
    states = hidden * weight[targets.roll(1)].tanh() if tied else hidden  # the head is the embedding
    results = both(states, weight, targets, temperature)
    leaves = [x for x in (hidden, weight) if x.requires_grad]
    total = sum((result * one.to(dtype)).sum() for result, one in zip(results, upstream, strict=True))
    gradients = torch.autograd.grad(total, leaves)
    return (*(each.detach() for each in results), *gradients)


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == other.shape
        assert float((mine.double() - other).norm() / other.norm()) < 2e-6


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied head"])
def test_log_probabilities_and_entropies_and_their_gradients_equal_autograd(tied: bool, temperature: float) -> None:
    ours = found_by(token_logprobs_and_entropies, temperature, torch.float32, tied=tied)
    theirs = found_by(exact, temperature, torch.float64, tied=tied)
    assert_close(ours, theirs)
    assert 1 < theirs[1].mean() < math.log(VOCABULARY) - 0.05  # no uniform distribution, and no single token


@pytest.mark.parametrize("trained", ["h", "w"], ids=["hidden states", "head"])
def test_the_gradients_of_one_alone(trained: str) -> None:
    ours = found_by(token_logprobs_and_entropies, 0.7, torch.float32, trained=(trained,))
    assert_close(ours, found_by(exact, 0.7, torch.float64, trained=(trained,)))


def test_a_temperature_without_entropies_equals_autograd() -> None:
    def alone(*given: Any) -> tuple[Tensor, Tensor]:
        return (logprobs := token_logprobs(*given)), torch.zeros_like(logprobs)

    def exact_alone(*given: Any) -> tuple[Tensor, Tensor]:
        return (logprobs := exact(*given)[0]), torch.zeros_like(logprobs)

    ours, theirs = found_by(alone, 0.7, torch.float32), found_by(exact_alone, 0.7, torch.float64)
    assert_close([ours[0], *ours[2:]], [theirs[0], *theirs[2:]])
    assert not ours[1].any()
