"""The built-in engine writes from the distribution that is trained, and an answer depends on its prompt alone.

Axes: A answers, V vocabulary.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from rollout_rows import PROMPTS, actor_of, asked
from scipy.stats import chisquare
from tiny import ARCHS, PAD_ID, PADDED, chat_rows, plain_model, tiny_model
from torch import Tensor, nn
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tunekit.models.actor import Actor
from tunekit.models.key_values import ROOM
from tunekit.models.policy import Policy
from tunekit.rollout import builtin
from tunekit.rollout.builtin import Builtin, draw
from tunekit.rollout.collect import sampled_row
from tunekit.rollout.samples import Completion, Sampling

FLAT = ["llama", "qwen3", "gpt2", "mistral"]
LENGTHS = (33, 17, 40, 5, 28, 17, 9)  # of the prompts; a sliding window of 24 cuts some of them
LONG = ROOM + 6  # new tokens: more than there is room for at first


def prompts() -> list[list[int]]:
    return [row.ids[:length].tolist() for row, length in zip(chat_rows(len(LENGTHS)), LENGTHS, strict=True)]


def untied(model: Any) -> Any:
    """A head of its own for models that share it with the embedding, whose likeliest token is the one just read."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings().weight
    if head.weight is embedding:
        random = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0))
        head.weight = nn.Parameter(random * embedding.std().item())
    return model


def policy_of(arch: str) -> Policy:
    policy = Policy(untied(tiny_model(arch, **ARCHS[arch])), torch.float32, PAD_ID)
    policy.prove(chat_rows(2), pairs=True)
    assert policy.flat == (arch not in PADDED)
    return policy


def sample(
    policy: Policy,
    asked: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    count: int = 1,
    batch: int = 64,
    seed: int = 0,
) -> list[list[Completion]]:
    engine = Builtin(batch)
    engine.sync(policy, 0)
    return engine.sample(asked, count, sampling, seed)


def ids_of(found: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    return [[each.ids.tolist() for each in answers] for answers in found]


@torch.no_grad()
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("arch", FLAT)
def test_log_probabilities_and_entropies_of_sampling_are_those_of_training(arch: str, lora: bool) -> None:
    actor = actor_of(arch, temperature=0.7, entropy=True, lora=lora)
    sampling = Sampling(LONG, temperature=0.7, ends=frozenset(range(0, 259, 40)))
    found = sample(actor, [each.ids.tolist() for each in asked()], sampling, count=3, batch=7)
    completions = [each for answers in found for each in answers]
    owners = [each for each in asked() for _ in range(3)]
    rows = [sampled_row(*each, i // 3) for i, each in enumerate(zip(owners, completions, strict=True))]
    batch = actor.eval().batch(rows)
    logprobs, entropies, _ = actor(batch).unbind(1)
    assert len({len(each.ids) for each in completions}) > 4
    for name, recomputed in (("logprobs", logprobs), ("entropies", entropies)):
        said = np.concatenate([getattr(each, name) for each in completions])
        np.testing.assert_allclose(said, recomputed.numpy(), rtol=0, atol=1e-4)
    at_one = Actor(actor.model, torch.float32, PAD_ID).eval()(batch)  # another temperature is another distribution
    assert float((at_one - logprobs).abs().mean()) > 0.05


@torch.no_grad()
def test_answers_are_distributed_as_the_softmax_of_the_whole_model() -> None:
    """Answers of two tokens, each one of three: nine, whose probabilities transformers alone says."""
    prompt, model = prompts()[0], plain_model("llama").eval()
    found = sample(policy_of("llama"), [prompt], Sampling(2, temperature=0.7, top_k=3), count=4000, batch=1000)
    seen = Counter(tuple(each.ids.tolist()) for each in found[0])

    def next_three(ids: list[int]) -> dict[int, float]:
        values, tokens = model(torch.tensor([ids])).logits[0, -1].topk(3)
        return dict(zip(tokens.tolist(), (values / 0.7).softmax(-1).tolist(), strict=True))

    expected = {
        (first, second): one * two
        for first, one in next_three(prompt).items()
        for second, two in next_three([*prompt, first]).items()
    }
    assert seen.keys() <= expected.keys() and min(expected.values()) * 4000 > 5
    frequencies = [seen[answer] for answer in expected]
    sharper = np.array(list(expected.values())) ** 1.2
    assert chisquare(frequencies, 4000 * np.array(list(expected.values())), sum_check=False).pvalue > 0.01
    assert chisquare(frequencies, 4000 * sharper / sharper.sum()).pvalue < 1e-3


def drawn(logits: Tensor, sampling: Sampling, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """`count` from one row of logits `(V,)`."""
    return draw(logits.expand(count, -1), sampling, torch.from_numpy(np.random.default_rng(seed).random(count)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature: float) -> None:
    logits = torch.randn(8, generator=torch.Generator().manual_seed(1))
    logits[0] = -torch.inf  # the first is never drawn, whatever the random number
    tokens, logprobs, entropies = drawn(logits, Sampling(1, temperature=temperature), 20_000)
    expected = torch.softmax(logits.double() / temperature, -1)
    frequencies = torch.bincount(tokens, minlength=8)
    assert frequencies[0] == 0
    assert chisquare(frequencies[1:].numpy(), 20_000 * expected[1:].numpy(), sum_check=False).pvalue > 0.01
    torch.testing.assert_close(logprobs, expected[tokens].log().float())
    entropy = -(expected[1:] * expected[1:].log()).sum().float()
    torch.testing.assert_close(entropies, entropy.expand(20_000))


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.9), (0, 0.3), (4, 1.0), (1, 1.0), (5, 0.7), (99, 1.0)], ids=lambda value: str(value)
)
def test_top_k_and_top_p_cut_what_the_warpers_of_transformers_cut(top_k: int, top_p: float) -> None:
    logits = 2 * torch.randn(6, 12, generator=torch.Generator().manual_seed(2))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(0.8)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = torch.log_softmax(warpers(None, logits), -1)  # type: ignore[arg-type]
    sampling = Sampling(1, temperature=0.8, top_k=top_k, top_p=top_p)
    for row, known in zip(logits, expected, strict=True):
        tokens, logprobs, entropies = drawn(row, sampling, 2000)
        torch.testing.assert_close(logprobs, known[tokens])
        assert set(tokens.tolist()) >= set(torch.nonzero(known.exp() > 0.01)[:, 0].tolist())
        torch.testing.assert_close(entropies[0], torch.special.entr(known.exp()).sum())


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_equal_seeds_give_equal_answers_and_others_give_others(arch: str) -> None:
    policy, sampling = policy_of(arch), Sampling(12, ends=frozenset({258, *range(0, 100, 7)}))
    first, again, other = (
        sample(policy, prompts(), sampling, count=2, batch=5, seed=seed) for seed in (2**61, 2**61, 5)
    )
    assert ids_of(first) == ids_of(again) != ids_of(other)
    if policy.flat:
        pairs = zip(itertools.chain(*first), itertools.chain(*again), strict=True)
        assert all(np.array_equal(a.logprobs, b.logprobs) for a, b in pairs)  # type: ignore[arg-type]
    assert any(a != b for a, b in ids_of(first))  # two answers to one prompt


@pytest.mark.parametrize("arch", ["llama", "gemma2", "mamba"])
def test_answers_stop_at_the_first_end_and_say_whether_they_did(arch: str) -> None:
    ends = frozenset({258, *range(0, 256, 16)})
    found = sample(policy_of(arch), prompts(), Sampling(20, ends=ends), count=3)
    completions = [each for answers in found for each in answers]
    for each in completions:
        assert each.ids.dtype == np.int32 and 1 <= len(each.ids) <= 20
        assert not ends & set(each.ids[:-1].tolist())
        assert each.ended == (each.ids[-1] in ends)
        assert each.ended or len(each.ids) == 20
        for beside in (each.logprobs, each.entropies):
            assert beside is None or len(beside) == len(each.ids)
        assert (each.logprobs is None) == (arch in PADDED)
    assert len({each.ended for each in completions}) == 2


@torch.no_grad()
def greedy(arch: str, count: int) -> list[list[int]]:
    """By transformers alone, a prompt at a time and so without padding, and without an end."""
    model = untied(plain_model(arch, **ARCHS[arch])).eval()
    model.generation_config.eos_token_id = None
    return [
        model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=PAD_ID)[
            0, len(ids) :
        ].tolist()
        for ids in prompts()
    ]


def until(answer: list[int], ends: frozenset[int]) -> list[int]:
    places = [i for i, token in enumerate(answer) if token in ends]
    return answer[: places[0] + 1] if places else answer


@pytest.mark.parametrize("arch", [*FLAT, *PADDED])
def test_greedy_answers_are_those_of_generate_on_each_prompt_alone(arch: str) -> None:
    """Of prompts of unequal length in one batch, with ends at which one after another leaves it."""
    count = LONG if arch in FLAT else 30
    alone, policy = greedy(arch, count), policy_of(arch)
    ends = frozenset({alone[0][1], alone[1][4], alone[2][9], alone[3][15]})
    expected = [until(answer, ends) for answer in alone]
    assert len({len(answer) for answer in expected}) >= 3
    assert all(len(set(answer)) > 2 for answer in alone)
    sampling = Sampling(count, temperature=0.0, ends=ends)
    for batch in (64, 3):
        found = sample(policy, prompts(), sampling, count=2, batch=batch)
        assert ids_of(found) == [[answer, answer] for answer in expected]
    unending = sample(policy, prompts(), Sampling(count, temperature=0.0, ends=frozenset({-1})))
    assert ids_of(unending) == [[answer] for answer in alone]


@pytest.mark.parametrize("arch", [*FLAT, *PADDED])
def test_a_greedy_answer_does_not_depend_on_the_prompts_beside_it(arch: str) -> None:
    policy, sampling = policy_of(arch), Sampling(16, temperature=0.0, ends=frozenset({258}))
    whole = ids_of(sample(policy, prompts(), sampling))
    reversed_order = ids_of(sample(policy, prompts()[::-1], sampling))[::-1]
    alone = [ids_of(sample(policy, [prompt], sampling))[0] for prompt in prompts()]
    assert whole == reversed_order == alone


@pytest.mark.parametrize("arch", FLAT)
def test_answers_that_leave_the_batch_change_nothing(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every end, at some, and never."""
    alone = greedy(arch, 30)
    sampling = Sampling(30, temperature=0.0, ends=frozenset({alone[0][1], alone[1][4], alone[2][9], alone[4][12]}))
    policy, found = policy_of(arch), []
    for share in (0.0, 0.25, 2.0):
        monkeypatch.setattr(builtin, "LEAVING", share)
        found.append([each for answers in sample(policy, prompts(), sampling, count=2) for each in answers])
    assert len({len(each.ids) for each in found[0]}) >= 3
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.ids.tolist() == b.ids.tolist() and a.ended == b.ended
            np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=0, atol=1e-5)  # type: ignore[arg-type]


def test_the_prompts_are_longer_and_shorter_than_the_window() -> None:
    window = ARCHS["mistral"]["sliding_window"]
    assert min(LENGTHS) < window < max(LENGTHS) and min(PROMPTS) < window < max(PROMPTS)
