"""From prompts to rows that can be trained on: answers, their rewards, what the models give them, advantages.

Axes: S answers of a rollout, P prompts, G answers to each, L tokens of the longest answer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tunekit.data.rows import Prompt, Sampled, Tokens
from tunekit.errors import DataError
from tunekit.models.actor import Actor, Reference
from tunekit.models.lora import as_trained
from tunekit.rollout.advantages import Method
from tunekit.rollout.gauges import answer_gauges
from tunekit.rollout.rewards import Scores, Source, score
from tunekit.rollout.samples import Completion, Response, Sampler, Sampling


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt of the data, and its ids as the model reads them."""

    prompt: Prompt
    ids: NDArray[np.int32]
    part: int = 0


@dataclass(frozen=True)
class Rollout:
    """The rows to train on, all the answers with their scores, and gauges of them."""

    rows: list[Sampled]
    responses: list[Response]
    scores: Scores
    gauges: dict[str, float]


@dataclass
class Collector:
    """Makes rollouts from prompts.

    method: how rewards become advantages;  reference: None where nothing asks for it
    num_generations: G;  batch_size: answers that go through a model together
    failures: share of answers that a reward may fail on
    keeps_old: whether the policy's log-probabilities at the rollout are needed: with several updates on one rollout
    checked: compare the log-probabilities of sampling and training at each rollout, and not only at the first
    tail: what the chat template writes behind an answer that has ended
    leaves_out_cut: answers that did not end by themselves are not trained
    """

    actor: Actor
    sampler: Sampler
    tokenizer: PreTrainedTokenizerBase
    rewards: Sequence[Source]
    method: Method
    reference: Reference | None
    sampling: Sampling
    num_generations: int
    batch_size: int
    failures: float
    keeps_old: bool
    checked: bool = False
    leaves_out_cut: bool = False
    missing_eos_penalty: float = 0.0
    tail: str = ""

    def collect(self, asked: Sequence[Asked], number: int, seed: int, poll: Callable[[], None]) -> Rollout:
        """Rollout `number` from its prompts; equal for an equal seed and equal weights.

        Raises `DataError` where a reward fails too often, or nothing is left to train on.
        """
        self.sampler.sync(self.actor, number)
        found = self.sampler.sample(
            [each.ids.tolist() for each in asked], self.num_generations, self.sampling, seed, poll
        )
        completions = [completion for answers in found for completion in answers]
        owners = [each for each in asked for _ in range(self.num_generations)]
        responses = self.responses(owners, completions)
        scores = score(self.rewards, responses, poll=poll, limit=self.failures)
        rows = [
            sampled_row(each, completion, i // self.num_generations)
            for i, (each, completion) in enumerate(zip(owners, completions, strict=True))
        ]
        rows, gauges = self._looked_at(rows, completions, number, poll)
        ended = np.array([each.ended for each in completions])
        totals = np.where(scores.valid, scores.total - self.missing_eos_penalty * ~ended, np.nan)
        rows, more = self.method.assign(rows, torch.from_numpy(totals).view(len(asked), -1))
        gauges |= more | answer_gauges(completions, scores)
        known = totals[scores.valid]
        gauges |= {"answers": float(len(known)), "total_std": float(known.std()) if len(known) else 0.0}
        used = scores.valid & (ended if self.leaves_out_cut else True)
        if not scores.valid.any():
            raise DataError(
                f"rollout {number}: each of {len(rows)} answers has a reward that failed: nothing is left to train on",
                "Mend the rewards or the rows that the warnings name.",
            )
        if not used.any():
            raise DataError(
                f"rollout {number}: none of {len(rows)} answers ended by itself within rollout.max_new_tokens: "
                f"{self.sampling.max_new_tokens}, and objective.mask_truncated_completions leaves all others out",
                "Raise rollout.max_new_tokens, or set objective.mask_truncated_completions: false.",
            )
        return Rollout([row for row, use in zip(rows, used, strict=True) if use], responses, scores, gauges)

    def responses(self, owners: Sequence[Asked], completions: Sequence[Completion]) -> list[Response]:
        """What rewards look at, of each answer and the prompt that it belongs to."""
        return [response(self.tokenizer, *each, self.tail) for each in zip(owners, completions, strict=True)]

    @torch.no_grad()
    def _looked_at(
        self, rows: list[Sampled], completions: Sequence[Completion], number: int, poll: Callable[[], None]
    ) -> tuple[list[Sampled], dict[str, float]]:
        """The rows with what policy, value function and reference give their tokens, and how far those are apart."""
        own = self.keeps_old or self.checked or self.actor.value is not None or number == 0
        columns: dict[str, list[NDArray[np.float32]]] = {name: [] for name in ("old", "values", "reference")}
        self.actor.eval()
        with as_trained(self.actor):
            for start in range(0, len(rows), self.batch_size):
                poll()
                batch = self.actor.batch(rows[start : start + self.batch_size])
                output = self.actor(batch) if own else None
                given = {"old": output[:, 0], "values": output[:, 2]} if output is not None else {}
                if self.reference is not None:
                    given["reference"] = self.reference(batch)
                for name, values in given.items():
                    columns[name] += [each.cpu().numpy() for each in values.split(batch.counts.tolist())]
        gauges = {}
        if columns["old"]:
            gauges = differences(columns["old"], completions)
        if not self.actor.value:
            columns["values"] = []
        filled: list[dict[str, Any]] = [
            {name: column[i] for name, column in columns.items() if column} for i in range(len(rows))
        ]
        gauges |= _divergence(filled, completions)
        if not self.keeps_old:  # the first and only update on a rollout starts from the policy that wrote it
            filled = [{name: value for name, value in each.items() if name != "old"} for each in filled]
        return [replace(row, **each) for row, each in zip(rows, filled, strict=True)], gauges


def response(tokenizer: PreTrainedTokenizerBase, asked: Asked, completion: Completion, tail: str = "") -> Response:
    """What rewards look at; `tail`: what the chat template writes behind an answer that has ended."""
    text = str(tokenizer.decode(completion.ids, skip_special_tokens=True))
    rendered = str(tokenizer.decode(np.concatenate([asked.ids, completion.ids])))
    if completion.ended and not isinstance(asked.prompt.prompt, str):
        rendered += tail
    return Response(asked.prompt, text, len(completion.ids), completion.ended, rendered)


def sampled_row(asked: Asked, completion: Completion, group: int) -> Sampled:
    ids = np.concatenate([asked.ids, completion.ids])
    tokens = Tokens(ids, np.arange(len(ids)) >= len(asked.ids), asked.prompt.source, asked.part)
    return Sampled(tokens, len(asked.ids), group)


def differences(recomputed: Sequence[NDArray[np.float32]], completions: Sequence[Completion]) -> dict[str, float]:
    """Nats a token between the log-probabilities of sampling and those of training, where the engine says its own."""
    pairs = [(own, each.logprobs) for own, each in zip(recomputed, completions, strict=True)]
    apart = [np.abs(own - given) for own, given in pairs if given is not None]
    return {"sampling_difference": float(np.concatenate(apart).mean())} if apart else {}


def _divergence(filled: Sequence[dict[str, Any]], completions: Sequence[Completion]) -> dict[str, float]:
    """kl: nats an answer from the reference, by k1, and its standard error."""
    sums = list(_log_ratios(filled, completions))
    if not sums:
        return {}
    values = np.array(sums)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"kl": float(values.mean()), "kl_error": float(error)}


def _log_ratios(filled: Sequence[dict[str, Any]], completions: Sequence[Completion]) -> Iterator[float]:
    for each, completion in zip(filled, completions, strict=True):
        own = each.get("old", completion.logprobs)
        if own is not None and "reference" in each:
            yield float((own - each["reference"]).sum())
