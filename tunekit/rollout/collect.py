"""From prompts to rows that can be trained on: answers, their rewards, what the models give them, advantages.

Axes: S answers of a rollout, P prompts, G answers to each, L tokens of the longest answer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from tunekit.rollout.rewards import Problem, Scores, Source, judged, weighed
from tunekit.rollout.samples import Completion, Response, Sampler, Sampling
from tunekit.train.engine import Engine
from tunekit.train.sharding import gathered


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


@dataclass(frozen=True, eq=False)
class Seen:
    """An answer, what each source of rewards says of it, and what models give its tokens, `(T,)` each."""

    completion: Completion
    response: Response
    verdicts: dict[str, float | Problem]
    given: dict[str, NDArray[np.float32]]


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
    engine: of the process, which shares the prompts with others
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
    engine: Engine = field(default_factory=Engine)

    def collect(self, asked: Sequence[Asked], number: int, seed: int, poll: Callable[[], None]) -> Rollout:
        """Rollout `number` from its prompts; equal for an equal seed and equal weights, on every rank.

        Raises `DataError` where a reward fails too often, or nothing is left to train on.
        """
        seen = self.seen(asked, self.num_generations, self.sampling, seed, poll, number)
        completions, responses = [each.completion for each in seen], [each.response for each in seen]
        scores = self.scores(seen)
        owners = [each for each in asked for _ in range(self.num_generations)]
        rows = [
            sampled_row(each, completion, i // self.num_generations)
            for i, (each, completion) in enumerate(zip(owners, completions, strict=True))
        ]
        rows, gauges = self._filled(rows, seen)
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

    def seen(
        self,
        asked: Sequence[Asked],
        count: int,
        sampling: Sampling,
        seed: int,
        poll: Callable[[], None],
        number: int | None = None,
    ) -> list[Seen]:
        """`count` answers to each of the prompts, side by side; each rank has its part written, rewarded and looked at.

        number: of the rollout; None: it is none, and the models do not look
        """
        poll = self.engine.by_itself(poll)
        with gathered(self.actor):
            written = self._written(asked, count, sampling, seed, poll, -1 if number is None else number)

            def look(numbers: Sequence[int]) -> list[list[Seen]]:
                chosen = [(asked[i], completion, i) for i in numbers for completion in written[i]]
                found = self._looked_at(chosen, number, poll)
                return [found[i : i + count] for i in range(0, len(found), count)]

            return [each for group in self.engine.shared(range(len(asked)), look) for each in group]

    def _written(
        self,
        asked: Sequence[Asked],
        count: int,
        sampling: Sampling,
        seed: int,
        poll: Callable[[], None],
        number: int,
    ) -> dict[int, list[Completion]]:
        """The answers to this rank's prompts, by number of the prompt; to all of them where the first asks a server."""
        engine, everyone = self.engine, range(len(asked))
        mine = everyone[engine.rank :: engine.world_size] if self.sampler.in_process else everyone
        found: list[list[Completion]] = []

        def write() -> None:
            self.sampler.sync(self.actor, number)
            found.extend(self.sampler.sample([asked[i].ids.tolist() for i in mine], count, sampling, seed, poll, mine))

        if self.sampler.in_process:
            write()
        else:
            engine.ranks.from_main(write)
            found = engine.gather(found)[0]
        return dict(zip(mine, found, strict=True))

    def scores(self, seen: Sequence[Seen]) -> Scores:
        """The rewards of the answers. Raises `DataError` where one fails too often."""
        return weighed(self.rewards, [each.verdicts for each in seen], self.failures)

    @torch.no_grad()
    def _looked_at(
        self, chosen: Sequence[tuple[Asked, Completion, int]], number: int | None, poll: Callable[[], None]
    ) -> list[Seen]:
        """Answers, of each its prompt and group, with their rewards, and in a rollout what models give their tokens."""
        responses = [response(self.tokenizer, asked, each, self.tail) for asked, each, _ in chosen]
        verdicts = judged(self.rewards, responses, poll)
        own = self.keeps_old or self.checked or self.actor.value is not None or number == 0
        columns: dict[str, list[NDArray[np.float32]]] = {name: [] for name in ("old", "values", "reference")}
        rows = [] if number is None else [sampled_row(*each) for each in chosen]
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
        if not self.actor.value:
            columns["values"] = []
        return [
            Seen(
                completion,
                responses[i],
                verdicts[i],
                {name: column[i] for name, column in columns.items() if column},
            )
            for i, (_, completion, _) in enumerate(chosen)
        ]

    def _filled(self, rows: list[Sampled], seen: Sequence[Seen]) -> tuple[list[Sampled], dict[str, float]]:
        """The rows with what the models give their tokens, and how far those are apart."""
        completions = [each.completion for each in seen]
        given: list[dict[str, Any]] = [each.given for each in seen]
        gauges = differences([each["old"] for each in given], completions) if "old" in given[0] else {}
        gauges |= _divergence(given, completions)
        if not self.keeps_old:  # the first and only update on a rollout starts from the policy that wrote it
            given = [{name: value for name, value in each.items() if name != "old"} for each in given]
        return [replace(row, **each) for row, each in zip(rows, given, strict=True)], gauges


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
