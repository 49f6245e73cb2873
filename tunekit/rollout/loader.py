"""What the training loop asks for rows, where the policy writes them itself: rollouts, each passed over several times.

    for rollout: collect from the next prompts -> for pass: for mini-batch: one optimizer step

The rollout in progress is part of a checkpoint, so that a resumed run finishes it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from tunekit.data.batch import BESIDE
from tunekit.data.loader import LoadedStep
from tunekit.data.plan import Plan
from tunekit.data.rows import Example, Sampled, Tokens
from tunekit.errors import DataError
from tunekit.rollout.collect import Asked, Collector, Rollout
from tunekit.rollout.watch import RolloutWatch

log = logging.getLogger("tunekit")

MORE_PROMPTS = 3  # times as many as asked that dynamic sampling asks at most in place of those with equal rewards
KEPT = ("rollouts", "asked", "done", "equal", "epochs", "left")
EQUAL_ROLLOUTS = 3  # in a row without any difference of rewards: a run that begins so ends


@dataclass
class RolloutLoader:
    """prompts: of the data, `plan` their order, a step of it being those of one rollout

    passes, mini_batches: over each rollout, and optimizer steps in each of these;  batch_size: answers a micro-batch
    seen: is told of each rollout;  moved: whether the rest of the passes are to be left out;
    watch: is kept with the rest;  rank, world_size: of the micro-batches of a step each process takes every so-many-th
    """

    prompts: Sequence[Asked]
    plan: Plan
    collector: Collector
    passes: int
    mini_batches: int
    batch_size: int
    seed: int
    num_steps: int
    terminators: frozenset[int]
    dynamic: bool = False
    seen: Callable[[int, Rollout], None] = lambda step, rollout: None
    moved: Callable[[], bool] = lambda: False
    watch: RolloutWatch | None = None
    rank: int = 0
    world_size: int = 1
    rollouts: int = 0  # made so far
    asked: int = 0  # steps of the plan that were used
    done: int = 0  # mini-batches of the rollout in hand that were trained on
    equal: int = 0  # rollouts without any difference of rewards, the last ones
    epochs: tuple[float, float] = (0.0, 0.0)  # before and after the prompts of the rollout in hand
    left: bool = False  # whether the rest of the passes over it were to be left out when the run was saved
    rows: list[Sampled] = field(default_factory=list)  # of the rollout in hand

    def steps(self, start: int, poll: Callable[[], None] = lambda: None) -> Iterator[LoadedStep]:
        """The steps after `start`. What `poll` raises, before anything of a new rollout is kept, goes through."""
        asked = self.plan.steps(self.asked)
        number, gauges, ended = start, dict[str, float](), False
        while number < self.num_steps:
            whole = self.done == self.passes * self.mini_batches
            if not self.rows or whole or (self.done and (self.left or self.moved())):
                ended = bool(self.rows) and not whole and self._is_last_of_epoch  # its last step was left out
                gauges = self._next(asked, number, poll)
            number, self.done = number + 1, self.done + 1
            ended |= self.done == self.passes * self.mini_batches and self._is_last_of_epoch
            yield LoadedStep(number, self._micro_batches(self.done - 1), self.epochs[1], ended, gauges)
            gauges, ended = {}, False

    @property
    def _is_last_of_epoch(self) -> bool:
        before, after = self.epochs
        return int(after) > int(before)

    def _next(self, asked: Iterator[Any], number: int, poll: Callable[[], None]) -> dict[str, float]:
        """Takes the next rollout in hand, and returns its gauges; of one that was asked again, those of the first."""
        found: list[Rollout] = []
        used = self.asked
        seed = int(np.random.default_rng([self.seed, self.rollouts]).integers(2**62))
        while True:
            _, epoch, ((*batch,),) = next(asked)
            used += 1
            prompts = [self.prompts[i] for i in batch]
            rollout = self.collector.collect(prompts, self.rollouts, seed + len(found), poll)
            first = len(found) * self.plan.batch_size  # of the groups of this one
            found.append(replace(rollout, rows=[replace(row, group=row.group + first) for row in rollout.rows]))
            rows = [row for each in found for row in _different(each.rows)] if self.dynamic else found[0].rows
            wanted = self.plan.batch_size * self.collector.num_generations
            if not self.dynamic or len(rows) >= wanted or len(found) > MORE_PROMPTS:
                break
        rollout = found[0]
        self.equal = 0 if any(_tells_apart(each) for each in found) else self.equal + 1
        if self.equal == EQUAL_ROLLOUTS:
            self._nothing_to_learn(rollout.gauges["reward"])
        # Where nothing differs, the rows stay: the step is then made of zeros.
        self.rows, self.asked, self.done = rows[:wanted] if self.dynamic and rows else rollout.rows, used, 0
        self.left = False
        self.epochs = self.epochs[1], epoch
        self.rollouts += 1
        self.seen(number + 1, rollout)
        return rollout.gauges | ({"asked_again": float(len(found) - 1)} if self.dynamic else {})

    def _nothing_to_learn(self, reward: float) -> None:
        """Ends a run that never had anything to learn from; one that has learnt it goes on."""
        if self.rollouts + 1 > EQUAL_ROLLOUTS:
            log.warning(
                "all answers of %d rollouts in a row have the same reward (%g): nothing is learnt any more",
                EQUAL_ROLLOUTS,
                reward,
            )
            return
        raise DataError(
            f"rewards: all answers of the first {EQUAL_ROLLOUTS} rollouts have the same reward ({reward:g}): there is "
            "nothing to learn from",
            "Look at samples.jsonl: prompts may be too hard or too easy, or the reward may not fit the answers.",
        )

    def _micro_batches(self, number: int) -> list[list[Example]]:
        """Mini-batch `number` of the rollout in hand: whole groups side by side, in an order drawn for each pass."""
        turn, part = divmod(number, self.mini_batches)
        generator = np.random.default_rng([self.seed, self.rollouts, turn])
        order = generator.permutation(sorted({row.group for row in self.rows})).tolist()
        place = {group: i for i, group in enumerate(order)}
        rows = sorted(self.rows, key=lambda row: place[row.group])
        low, high = (len(rows) * k // self.mini_batches for k in (part, part + 1))
        chosen = rows[low:high] or rows[-1:]
        batches = [list(chosen[i : i + self.batch_size]) for i in range(0, len(chosen), self.batch_size)]
        return batches[self.rank :: self.world_size]  # type: ignore[return-value]

    def longest(self, padded: bool) -> Sequence[Example]:
        """As many answers as a micro-batch has, as long as they may become, each to a longest prompt of its own."""
        prompt = max(self.prompts, key=lambda each: len(each.ids))
        length = self.collector.sampling.max_new_tokens
        ids = np.concatenate([prompt.ids, np.resize(prompt.ids, length)])
        tokens = Tokens(ids, np.arange(len(ids)) >= len(prompt.ids), prompt.prompt.source)
        beside = {name: np.zeros(length, np.float32) for name in BESIDE}
        return [Sampled(tokens, len(prompt.ids), group, length, **beside) for group in range(self.batch_size)]

    def state_dict(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in KEPT}
        counts["left"] = self.done > 0 and (self.left or self.moved())
        watched = self.watch.state_dict() if self.watch else None
        method = self.collector.method.state_dict()
        return {**counts, "watch": watched, "method": method, "rows": _as_tensors(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in KEPT:
            setattr(self, name, state[name])
        self.collector.method.load_state_dict(state["method"])
        if self.watch:
            self.watch.load_state_dict(state["watch"])
        self.rows = _from_tensors(state["rows"])

    def report(self) -> dict[str, Any]:
        return {}


def _tells_apart(rollout: Rollout) -> bool:
    """Whether the rewards say of any two answers that one is better: of two to one prompt, where those are compared."""
    gauges = rollout.gauges
    if "equal_groups" in gauges:
        return gauges["equal_groups"] < 1
    return gauges.get("answers", 2) < 2 or gauges.get("total_std", gauges["reward_std"]) > 1e-9


def _different(rows: Sequence[Sampled]) -> list[Sampled]:
    """The rows from which something is learnt: those of a group in which an advantage is not 0."""
    known = {row.group for row in rows if row.advantages is not None and row.advantages.any()}
    return [row for row in rows if row.group in known]


def _as_tensors(rows: Sequence[Sampled]) -> dict[str, Any]:
    if not rows:
        return {}
    return {
        "ids": torch.from_numpy(np.concatenate([row.tokens.ids for row in rows])),
        "sizes": [[len(row.tokens.ids), row.prompt_length, row.group, row.weight, row.part] for row in rows],
        "sources": [row.tokens.source for row in rows],
        "beside": {
            name: torch.from_numpy(np.concatenate([getattr(row, name) for row in rows]))
            for name in BESIDE
            if getattr(rows[0], name) is not None
        },
    }


def _from_tensors(state: dict[str, Any]) -> list[Sampled]:
    rows: list[Sampled] = []
    at = own = 0
    for (length, prompt, group, weight, part), source in zip(
        state.get("sizes", ()), state.get("sources", ()), strict=True
    ):
        ids = state["ids"][at : at + length].numpy()
        tokens = Tokens(ids, np.arange(length) >= prompt, source, part)
        answer = length - prompt
        beside = {name: values[own : own + answer].numpy() for name, values in state["beside"].items()}
        rows.append(Sampled(tokens, prompt, group, weight, **beside))
        at, own = at + length, own + answer
    return rows
