"""The steps of online training: which rows of which rollout come when, and that a resumed run gets the same ones."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunekit.data.batch import BESIDE
from tunekit.data.loader import LoadedStep
from tunekit.data.plan import Plan
from tunekit.data.rows import Prompt, Sampled
from tunekit.errors import DataError, Preempted
from tunekit.rollout.advantages import Generalised, Grouped, Method
from tunekit.rollout.collect import Asked, Rollout, sampled_row
from tunekit.rollout.gauges import answer_gauges
from tunekit.rollout.loader import MORE_PROMPTS, RolloutLoader
from tunekit.rollout.rewards import Scores
from tunekit.rollout.samples import Completion, Sampling

PROMPTS = [Asked(Prompt(f"{i}", f"a.jsonl:{i}"), np.arange(1, 2 + i % 4, dtype=np.int32), i % 2) for i in range(10)]
NUMBER = {each.prompt.source: i for i, each in enumerate(PROMPTS)}


@dataclass
class Dice:
    """Rolls answers and rewards from the seed; all answers to the prompts `equal` have the same reward."""

    num_generations: int = 4
    equal: set[int] = field(default_factory=set)
    method: Method = field(default_factory=lambda: Generalised(0.1, "k1", 1.0, 0.95, False, 1.0, 50))
    sampling: Sampling = field(default_factory=lambda: Sampling(5))
    asked: list[list[int]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def collect(self, asked: Sequence[Asked], number: int, seed: int, poll: Callable[[], None]) -> Rollout:
        poll()
        self.asked.append([NUMBER[each.prompt.source] for each in asked])
        self.seeds.append(seed)
        random = np.random.default_rng(seed)
        rewards = random.normal(size=(len(asked), self.num_generations))
        rewards[[number in self.equal for number in self.asked[-1]]] = 1.0
        rows, completions = [], []
        for group, each in enumerate(asked):
            for _ in range(self.num_generations):
                ids = random.integers(0, 1000, random.integers(1, 6)).astype(np.int32)
                completions.append(Completion(ids, None, True))
                old, reference, values = random.normal(size=(3, len(ids))).astype(np.float32)
                row = sampled_row(each, completions[-1], group)
                rows.append(replace(row, old=old, reference=reference, values=values))
        rows, gauges = self.method.assign(rows, torch.from_numpy(rewards))
        total = rewards.flatten()
        scores = Scores({"dice": total}, total, np.ones(len(total), bool))
        return Rollout(rows, [], scores, gauges | answer_gauges(completions, scores))


def grouped(**values: Any) -> Dice:
    return Dice(method=Grouped("none", by_tokens=False), **values)


def loader(collector: Dice | None = None, num_prompts: int = 4, **values: Any) -> RolloutLoader:
    """10 prompts, 4 a rollout, and so rollouts of 4, 4 and 2 prompts an epoch; 4 optimizer steps on each."""
    lengths = [len(each.ids) for each in PROMPTS]
    plan = Plan(lengths, num_prompts, 1, epochs=1.0, max_steps=2**31, seed=3)
    given: dict[str, Any] = {"passes": 2, "mini_batches": 2, "batch_size": 3, "seed": 3, "num_steps": 24, **values}
    return RolloutLoader(PROMPTS, plan, collector or Dice(), terminators=frozenset({0}), **given)  # type: ignore[arg-type]


def content(row: Sampled) -> tuple[Any, ...]:
    beside = [None if (value := getattr(row, name)) is None else value.tobytes() for name in BESIDE]
    tokens = (row.tokens.ids.tobytes(), row.tokens.trained.tobytes(), row.tokens.source, row.part)
    return (*tokens, row.prompt_length, row.group, row.weight, *beside)


def rows_of(step: LoadedStep) -> list[Sampled]:
    return [row for batch in step.micro_batches for row in batch if isinstance(row, Sampled)]


def contents(step: LoadedStep) -> tuple[Any, ...]:
    batches = [[content(row) for row in batch if isinstance(row, Sampled)] for batch in step.micro_batches]
    return step.number, batches, step.epoch, step.ends_epoch, step.gauges


def by_rollout(steps: Sequence[LoadedStep]) -> list[list[LoadedStep]]:
    """The first step of each rollout has its gauges."""
    first = [i for i, step in enumerate(steps) if step.gauges]
    return [list(steps[a:b]) for a, b in itertools.pairwise([*first, len(steps)])]


def test_every_prompt_is_asked_once_an_epoch_and_a_step_has_answers_to_those_alone() -> None:
    dice = Dice()
    steps = list(loader(dice).steps(0))
    assert [len(asked) for asked in dice.asked] == [4, 4, 2, 4, 4, 2]
    for epoch in (dice.asked[:3], dice.asked[3:]):
        assert sorted(itertools.chain(*epoch)) == list(range(10))
    assert dice.asked[:3] != dice.asked[3:]
    for asked, rollout in zip(dice.asked, by_rollout(steps), strict=True):
        assert {NUMBER[row.tokens.source] for step in rollout for row in rows_of(step)} == set(asked)


def test_steps_are_numbered_and_an_epoch_ends_with_the_last_step_on_its_last_rollout() -> None:
    steps = list(loader().steps(0))
    assert [step.number for step in steps] == list(range(1, 25))
    assert [step.number for step in steps if step.ends_epoch] == [12, 24]
    assert [step.epoch for step in steps[::4]] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])


@pytest.mark.parametrize("generations", [1, 4, 5])
@pytest.mark.parametrize(("passes", "mini_batches", "batch_size"), [(1, 1, 100), (2, 2, 3), (3, 4, 1), (2, 3, 4)])
def test_each_pass_has_each_row_once(generations: int, passes: int, mini_batches: int, batch_size: int) -> None:
    each = loader(Dice(generations), passes=passes, mini_batches=mini_batches, batch_size=batch_size)
    each.num_steps = 2 * passes * mini_batches
    rollouts = by_rollout(list(each.steps(0)))
    assert [len(steps) for steps in rollouts] == [passes * mini_batches] * 2
    for steps in rollouts:
        turns = [steps[i : i + mini_batches] for i in range(0, len(steps), mini_batches)]
        seen = [Counter(content(row) for step in turn for row in rows_of(step)) for turn in turns]
        assert all(one == seen[0] and one.total() == 4 * generations and max(one.values()) == 1 for one in seen)
        assert all(0 < len(batch) <= batch_size for step in steps for batch in step.micro_batches)
        sizes = [len(rows_of(step)) for step in steps]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("mini_batches", [1, 2, 4])
def test_groups_are_whole_within_a_mini_batch_and_side_by_side(mini_batches: int) -> None:
    for step in loader(mini_batches=mini_batches, num_steps=2 * mini_batches).steps(0):
        groups = [
            [row.group for row in rows] for _, rows in itertools.groupby(rows_of(step), key=lambda row: row.group)
        ]
        assert [len(group) for group in groups] == [4] * (4 // mini_batches)


def test_groups_come_in_another_order_in_each_pass() -> None:
    steps = list(loader(passes=6, mini_batches=1, num_steps=6).steps(0))
    orders = {tuple(row.group for row in rows_of(step)) for step in steps}
    assert len(orders) > 3


def test_rollouts_have_seeds_of_their_own_that_the_seed_of_the_run_decides() -> None:
    dice, again, other = Dice(), Dice(), Dice()
    for each, seed in ((dice, 3), (again, 3), (other, 4)):
        list(loader(each, seed=seed).steps(0))
    assert len(set(dice.seeds)) == 6 and dice.seeds == again.seeds
    assert not set(dice.seeds) & set(other.seeds)


def resumed(stopped: RolloutLoader, folder: Path, **values: Any) -> RolloutLoader:
    """Another loader, with the state of the one that was stopped as a checkpoint has it."""
    torch.save(stopped.state_dict(), folder / "state.pt")
    collector = stopped.collector
    assert isinstance(collector, Dice)
    method = Generalised(0.1, "k1", 1.0, 0.95, False, 1.0, 50)
    fresh = replace(collector, method=method if isinstance(collector.method, Generalised) else collector.method)
    again = loader(fresh, **values)
    again.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    return again


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 6, 11, 12, 13])
def test_a_resumed_run_goes_on_with_the_same_batches(tmp_path: Path, stop: int) -> None:
    whole = [contents(step) for step in loader().steps(0)]
    stopped = loader()
    made = list(itertools.islice(stopped.steps(0), stop))
    again = resumed(stopped, tmp_path)
    assert [contents(step) for step in made] + [contents(step) for step in again.steps(stop)] == whole
    assert len({step[-1]["kl_coef"] for step in whole if step[-1]}) == 6  # and so does what the method adapts


@pytest.mark.parametrize("stop", [2, 4, 5])
def test_a_resumed_run_samples_dynamically_as_one_that_never_stopped(tmp_path: Path, stop: int) -> None:
    values = {"dynamic": True, "num_steps": 12}
    whole = [contents(step) for step in loader(grouped(equal={1, 4, 7}), **values).steps(0)]
    stopped = loader(grouped(equal={1, 4, 7}), **values)
    made = [contents(step) for step in itertools.islice(stopped.steps(0), stop)]
    assert made + [contents(step) for step in resumed(stopped, tmp_path, **values).steps(stop)] == whole


def test_a_rollout_that_was_cut_short_by_a_signal_is_made_again(tmp_path: Path) -> None:
    whole = [contents(step) for step in loader().steps(0)]
    stopped = loader()
    made: list[tuple[Any, ...]] = []

    def poll() -> None:
        if len(made) == 8:
            raise Preempted("stop")

    with pytest.raises(Preempted):
        for step in stopped.steps(0, poll):
            made.append(contents(step))
    assert made + [contents(step) for step in resumed(stopped, tmp_path).steps(8)] == whole


def test_dynamic_sampling_asks_others_in_place_of_prompts_whose_answers_are_all_equal() -> None:
    dice = grouped(equal={1, 4, 7})
    each = loader(dice, dynamic=True, num_steps=12)
    for steps in by_rollout(list(each.steps(0))):
        rows = [row for step in steps[:2] for row in rows_of(step)]
        assert len(rows) == 16
        assert not {NUMBER[row.tokens.source] for row in rows} & dice.equal
        groups = Counter(row.group for row in rows)
        assert list(groups.values()) == [4] * 4  # those of a second asking are not mixed up with those of the first
        assert len({(row.group, row.tokens.source) for row in rows}) == 4
    assert len(dice.asked) > 3 and len(set(dice.seeds)) == len(dice.seeds)
    assert each.asked == len(dice.asked)


def test_dynamic_sampling_asks_once_where_all_groups_differ() -> None:
    dice = grouped()
    steps = list(loader(dice, dynamic=True, num_steps=8).steps(0))
    assert len(dice.asked) == 2
    assert [step.gauges["asked_again"] for step in steps if step.gauges] == [0.0, 0.0]


def test_dynamic_sampling_gives_up_and_trains_on_what_there_is() -> None:
    dice = grouped(equal=set(range(1, 10)))
    (step,) = loader(dice, dynamic=True, passes=1, mini_batches=1, num_steps=1).steps(0)
    assert len(dice.asked) == 1 + MORE_PROMPTS and step.gauges["asked_again"] == MORE_PROMPTS
    assert {NUMBER[row.tokens.source] for row in rows_of(step)} == {0}
    assert len(rows_of(step)) == 4 * sum(asked.count(0) for asked in dice.asked)


def test_without_dynamic_sampling_equal_groups_stay() -> None:
    dice = grouped(equal={1, 4, 7})
    steps = list(loader(dice, num_steps=12).steps(0))
    assert {NUMBER[row.tokens.source] for step in steps for row in rows_of(step)} == set(range(10))
    assert len(dice.asked) == 3


@pytest.mark.parametrize("dynamic", [False, True])
def test_equal_rewards_in_three_rollouts_end_the_run(dynamic: bool) -> None:
    steps = loader(grouped(equal=set(range(10))), dynamic=dynamic).steps(0)
    made = []
    with pytest.raises(DataError, match="all answers of the first 3 rollouts have the same reward \\(1\\)") as caught:
        for step in steps:
            made.append(step)
    assert "samples.jsonl" in caught.value.fix
    assert len(made) == 8  # of two rollouts: steps of zeros
    assert all(not row.advantages.any() for step in made for row in rows_of(step) if row.advantages is not None)


def test_a_run_that_has_learnt_what_there_was_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dice = grouped(equal=set(range(10)))
    each = loader(dice)
    steps = each.steps(0)
    list(itertools.islice(steps, 8))
    dice.equal = set()
    list(itertools.islice(steps, 4))
    dice.equal = set(range(10))
    list(itertools.islice(steps, 8))
    again = resumed(each, tmp_path)
    for goes_on in (steps, again.steps(20)):
        assert next(goes_on).number == 21
        assert "nothing is learnt any more" in caplog.text
        caplog.clear()


def test_rewards_that_differ_between_prompts_alone_are_something_to_learn_from_for_ppo() -> None:
    class ByPrompt(Dice):
        def collect(self, asked: Sequence[Asked], number: int, seed: int, poll: Callable[[], None]) -> Rollout:
            rollout = super().collect(asked, number, seed, poll)
            return replace(rollout, gauges=rollout.gauges | {"reward_std": 0.5})

    assert len(list(loader(ByPrompt(equal=set(range(10)))).steps(0))) == 24


class Moved:
    """Says that the policy has moved too far after the steps `after`."""

    def __init__(self, *after: int) -> None:
        self.after, self.step = after, 0

    def __call__(self) -> bool:
        return self.step in self.after


def walked(each: RolloutLoader, moved: Moved, start: int = 0) -> list[LoadedStep]:
    """The steps, `moved` being told of each before the next is asked for, as in a run."""
    steps = []
    for step in each.steps(start):
        moved.step = step.number
        steps.append(step)
    return steps


def test_a_policy_that_has_moved_leaves_the_other_passes_out() -> None:
    dice, moved = Dice(), Moved(2, 3)
    rollouts = by_rollout(walked(loader(dice, moved=moved, num_steps=11), moved))
    assert [len(steps) for steps in rollouts] == [2, 1, 4, 4]
    assert [step.number for steps in rollouts for step in steps] == list(range(1, 12))
    assert [len(asked) for asked in dice.asked] == [4, 4, 2, 4]


def test_a_run_that_is_resumed_where_its_policy_has_moved_leaves_the_other_passes_out_too(tmp_path: Path) -> None:
    moved = Moved(2)
    whole = walked(loader(moved=moved, num_steps=8), moved)
    moved = Moved(2)
    stopped = loader(moved=moved, num_steps=2)
    made = walked(stopped, moved)
    again = resumed(stopped, tmp_path, num_steps=8)  # its watch has seen no step yet
    assert [contents(step) for step in [*made, *again.steps(2)]] == [contents(step) for step in whole]


def test_an_epoch_whose_last_passes_were_left_out_ends_with_the_next_step() -> None:
    moved = Moved(10)
    steps = walked(loader(moved=moved), moved)
    assert [step.number for step in steps if step.ends_epoch] == [11, 22]


@pytest.mark.parametrize("num_steps", [1, 4, 5])
def test_the_number_of_steps_is_kept_in_the_middle_of_a_rollout(num_steps: int) -> None:
    dice = Dice()
    assert len(list(loader(dice, num_steps=num_steps).steps(0))) == num_steps
    assert len(dice.asked) == -(-num_steps // 4)


def test_each_rollout_is_shown_once_with_the_step_that_it_is_first_trained_in() -> None:
    shown: list[tuple[int, Rollout]] = []
    steps = list(loader(seen=lambda step, rollout: shown.append((step, rollout))).steps(0))
    assert [step for step, _ in shown] == [1, 5, 9, 13, 17, 21]
    for (number, rollout), step in zip(shown, steps[::4], strict=True):
        assert step.number == number and step.gauges == rollout.gauges


def test_the_longest_batch_has_the_longest_prompt_and_the_longest_answer_in_every_row() -> None:
    rows = [row for row in loader().longest(padded=False) if isinstance(row, Sampled)]
    assert len(rows) == 3 and len({row.group for row in rows}) == 3
    for row in rows:
        assert row.prompt_length == 4 and len(row.tokens.ids) == 9
        assert row.tokens.trained.tolist() == [False] * 4 + [True] * 5
        assert all(len(getattr(row, name)) == 5 for name in BESIDE)


def test_a_resumed_run_that_is_stopped_in_its_first_rollout_still_leaves_the_passes_out(tmp_path: Path) -> None:
    moved = Moved(2)
    whole = walked(loader(moved=moved, num_steps=8), moved)
    moved = Moved(2)
    stopped = loader(moved=moved, num_steps=2)
    made = walked(stopped, moved)
    again = resumed(stopped, tmp_path, num_steps=8)

    def poll() -> None:
        raise Preempted("stop")

    with pytest.raises(Preempted):
        next(again.steps(2, poll))
    twice = resumed(again, tmp_path, num_steps=8)
    assert [contents(step) for step in [*made, *twice.steps(2)]] == [contents(step) for step in whole]


@pytest.mark.parametrize("stop", [4, 8])
def test_a_resumed_run_counts_the_equal_rollouts_before_it(tmp_path: Path, stop: int) -> None:
    stopped = loader(grouped(equal=set(range(10))))
    list(itertools.islice(stopped.steps(0), stop))
    with pytest.raises(DataError, match="first 3 rollouts"):
        list(resumed(stopped, tmp_path).steps(stop))


def test_equal_rewards_later_on_are_said_once_and_a_difference_begins_the_count_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dice = grouped()
    steps = loader(dice, num_steps=48).steps(0)
    said = []
    for equal in (True, True, False, True, True, False, True, True, True, True, True):
        dice.equal = set(range(10)) if equal else set()
        list(itertools.islice(steps, 4))
        said.append(len(caplog.messages))
    assert said == [0] * 8 + [1] * 3
