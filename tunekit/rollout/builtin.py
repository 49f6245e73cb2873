"""The built-in engine: the policy writes its own answers, in batches, with the arithmetic of training.

A prompt goes through the model once for all its answers; answers that are done leave the batch. Where the flat layout
is not safe on a model (see models/policy.py), transformers' `generate` writes them.

Axes: A answers in the batch, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunekit.models.attention import prepared_mask, segment_inputs
from tunekit.models.generate import sampling_options
from tunekit.models.key_values import KeyValues
from tunekit.models.lora import as_trained
from tunekit.models.policy import Policy
from tunekit.rollout.samples import Completion, Sampling

LEAVING = 0.25  # share of the batch that is done before the others are moved together


class Builtin:
    """Samples from the policy in this process, `batch_size` answers at a time."""

    in_process = True

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.policy: Policy | None = None

    def sync(self, policy: Policy, step: int) -> None:
        self.policy = policy

    def close(self) -> None:
        pass

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        num_generations: int,
        sampling: Sampling,
        seed: int,
        poll: Callable[[], None] = lambda: None,
        numbers: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """As the protocol says. Prompts of similar length share a batch, so that little of it is padding.

        Each answer has random numbers of its own, so that it does not depend on what shares its batch.
        """
        policy = self.policy
        assert policy is not None
        policy.eval()
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [(i, k) for i in by_length for k in range(num_generations)]
        numbers = numbers or range(len(prompts))
        found: list[list[Completion]] = [[] for _ in prompts]
        with (
            as_trained(policy.model),
            torch.autocast(policy.causal.device.type, policy.dtype, enabled=policy.autocast),
        ):
            for start in range(0, len(answers), self.batch_size):
                chosen = answers[start : start + self.batch_size]
                chunk = [i for i, _ in chosen]
                random = [np.random.default_rng([seed, numbers[i], k]) for i, k in chosen]
                write = _write if policy.flat else _generate
                for i, completion in zip(chunk, write(policy, prompts, chunk, sampling, random, poll), strict=True):
                    found[i].append(completion)
        return found


@dataclass
class _Answers:
    """What was drawn of A answers: `(A, max_new_tokens)` each, and how many of the columns count."""

    ids: Tensor
    logprobs: Tensor
    entropies: Tensor
    lengths: Tensor
    ended: Tensor

    @classmethod
    def empty(cls, count: int, longest: int, device: torch.device) -> "_Answers":
        return cls(
            torch.zeros(count, longest, dtype=torch.long, device=device),
            torch.zeros(count, longest, device=device),
            torch.zeros(count, longest, device=device),
            torch.full((count,), longest, device=device),
            torch.zeros(count, dtype=torch.bool, device=device),
        )

    def add(
        self, column: int, active: Tensor, tokens: Tensor, logprobs: Tensor, entropies: Tensor, ends: Tensor
    ) -> Tensor:
        """Takes the tokens of the answers `active (B,)`, and returns which of these go on, as numbers in `active`."""
        self.ids[active, column], self.logprobs[active, column] = tokens, logprobs
        self.entropies[active, column] = entropies
        ending = torch.isin(tokens, ends) & ~self.ended[active]
        self.ended[active[ending]], self.lengths[active[ending]] = True, column + 1
        return torch.nonzero(~self.ended[active]).squeeze(1)

    def completions(self) -> Iterator[Completion]:
        for row, length in enumerate(self.lengths.tolist()):
            ids, logprobs, entropies = (each[row, :length] for each in (self.ids, self.logprobs, self.entropies))
            yield Completion(
                ids.cpu().numpy().astype(np.int32),
                logprobs.cpu().numpy(),
                bool(self.ended[row]),
                entropies.cpu().numpy(),
            )


def _write(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    chunk: Sequence[int],
    sampling: Sampling,
    random: Sequence[np.random.Generator],
    poll: Callable[[], None],
) -> Iterator[Completion]:
    """Answers to the prompts with the numbers `chunk`, in order."""
    device = policy.causal.device
    drawn = _Answers.empty(len(chunk), sampling.max_new_tokens, device)
    head = policy.head_weight if policy.chunked_head else None
    cache, logits = _read(policy, head, prompts, chunk)
    active = torch.arange(len(chunk), device=device)  # which answer each row of the batch is
    ends = torch.tensor(sorted(sampling.ends), dtype=torch.long, device=device)
    places = torch.from_numpy(np.stack([each.random(sampling.max_new_tokens) for each in random])).to(device)
    for column in range(sampling.max_new_tokens):
        poll()
        tokens, logprobs, entropies = draw(logits, sampling, places[active, column])
        going = drawn.add(column, active, tokens, logprobs, entropies, ends)
        if len(going) == 0 or column + 1 == sampling.max_new_tokens:
            break
        if len(going) <= (1 - LEAVING) * len(active):
            cache.keep(going)
            active, tokens = active[going], tokens[going]
        layout = {"position_ids": cache.positions[None], "use_cache": False, "cache": cache}
        cache.advance()
        logits = _logits(policy, head, tokens, {**layout, "attention_mask": prepared_mask(device)})
    return drawn.completions()


def _read(
    policy: Policy, head: Tensor | None, prompts: Sequence[Sequence[int]], chunk: Sequence[int]
) -> tuple[KeyValues, Tensor]:
    """The prompts with the numbers `chunk`, each of them once: keys and values, and logits `(A, V)` behind them."""
    device = policy.causal.device
    different = sorted(set(chunk), key=lambda i: len(prompts[i]))
    lengths = [len(prompts[i]) for i in different]
    place = {prompt: number for number, prompt in enumerate(different)}
    prompt_of = [place[i] for i in chunk]
    cache = KeyValues(lengths, prompt_of, device)
    ids = torch.tensor([token for i in different for token in prompts[i]], device=device)
    lasts = torch.tensor(lengths, device=device).cumsum(0) - 1
    layout = segment_inputs(lengths, device) | {"cache": cache}
    return cache, _logits(policy, head, ids, layout, lasts)[prompt_of]


def _logits(
    policy: Policy, head: Tensor | None, ids: Tensor, layout: dict[str, object], at: Tensor | None = None
) -> Tensor:
    """`(A, V)` in fp32 of the tokens of a flat row, or of those at the positions `at`."""
    if head is None:
        output = policy.causal(ids[None], logits_to_keep=0 if at is None else at, **layout)
        return output.logits[0].float()
    hidden = policy.causal.base_model(ids[None], **layout).last_hidden_state[0]
    return ((hidden if at is None else hidden[at]).to(head.dtype) @ head.T).float()


def draw(logits: Tensor, sampling: Sampling, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A token for each row of `logits (A, V)`, its log-probability, and the entropy of what it was drawn from, `(A,)`.

    places: `(A,)` in [0, 1), uniform: where in the cumulative distribution each token is taken. Temperature 0 takes the
    likeliest; its log-probability is that of the plain softmax.
    """
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    logprobs = torch.log_softmax(_cut(logits, sampling), -1)
    probs = logprobs.exp()
    if sampling.temperature > 0:
        below = probs.cumsum(-1, dtype=torch.float64)
        # 1 - u is above 0, so that no token of probability 0 at the beginning is drawn.
        tokens = torch.searchsorted(below, (1 - places[:, None]) * below[:, -1:]).squeeze(1)
    else:
        tokens = logits.argmax(-1)
    return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1), torch.special.entr(probs).sum(-1)


def _cut(logits: Tensor, sampling: Sampling) -> Tensor:
    """`logits` with minus infinity outside of the likeliest `top_k` and of the nucleus `top_p`."""
    if sampling.top_k:
        least = logits.topk(min(sampling.top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # of the tokens likelier than each
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def _generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    chunk: Sequence[int],
    sampling: Sampling,
    random: Sequence[np.random.Generator],
    poll: Callable[[], None],
) -> Iterator[Completion]:
    """The same by transformers' `generate`, which does not say log-probabilities of what it draws."""
    poll()
    torch.manual_seed(int(random[0].integers(2**62)))
    longest = max(len(prompts[i]) for i in chunk)
    ids = torch.full((len(chunk), longest), policy.pad_id)
    mask = torch.zeros(len(chunk), longest, dtype=torch.long)
    for row, i in enumerate(chunk):
        ids[row, longest - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
        mask[row, longest - len(prompts[i]) :] = 1
    options = sampling_options(sampling.temperature, sampling.top_p)
    if sampling.temperature > 0:
        options["top_k"] = sampling.top_k
    device = policy.causal.device
    output = policy.causal.generate(  # type: ignore[operator]
        ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(sampling.ends) or None,
        pad_token_id=policy.pad_id,
        **options,
    )
    for new in output[:, longest:].cpu().numpy().astype(np.int32):
        at = np.flatnonzero(np.isin(new, list(sampling.ends)))
        yield Completion(new[: at[0] + 1] if len(at) else new, None, bool(len(at)))
