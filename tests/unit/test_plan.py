"""The plan: each row once an epoch, packs within their capacity, and steps that a resumed run finds again."""

import itertools
import math
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekit.data.plan import MicroBatch, Mixture, Plan, Step, mix, pack

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=80).map(tuple)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    return Plan(
        lengths=draw(LENGTHS),
        batch_size=draw(st.integers(1, 9)),
        micro_batches=draw(st.integers(1, 5)),
        epochs=draw(st.sampled_from([0.01, 0.5, 1.0, 1.1, 1.5, 2.0, 2.2, 3.0])),
        max_steps=draw(st.none() | st.integers(1, 40)),
        seed=draw(st.integers(0, 3)),
        sampling=draw(st.sampled_from(["random", "sequential"])),
        pack_to=draw(st.none() | st.integers(1, 120)),
    )


def plan(rows: int, **values: object) -> Plan:
    settings = {"batch_size": 1, "micro_batches": 1, "epochs": 1.0, "max_steps": None, "seed": 0, **values}
    return Plan(lengths=tuple(range(1, rows + 1)), **settings)  # type: ignore[arg-type]


def rows_of(steps: list[tuple[int, float, Step]]) -> list[int]:
    return [row for _, _, step in steps for batch in step for row in batch]


def epochs_of(steps: list[tuple[int, float, Step]]) -> list[list[tuple[int, float, Step]]]:
    """The steps of each epoch; one that is cut off comes last."""
    cut = [i + 1 for i, (_, epoch, _) in enumerate(steps) if float(epoch).is_integer()]
    return [steps[a:b] for a, b in itertools.pairwise([0, *cut, len(steps)]) if b > a]


@given(plans())
def test_the_number_of_steps_is_the_number_of_steps(made: Plan) -> None:
    numbers = [number for number, _, _ in made.steps()]
    assert numbers == list(range(1, made.num_steps + 1))
    assert made.num_steps == (made.max_steps or len(numbers)) and numbers


@given(plans(), st.integers(0, 60))
def test_the_steps_after_a_start_are_the_tail_of_all_steps(made: Plan, start: int) -> None:
    assert list(made.steps(start)) == list(made.steps())[start:]


@given(plans())
def test_every_epoch_has_every_row_once(made: Plan) -> None:
    everything = Counter(range(len(made.lengths)))
    for epoch in epochs_of(list(made.steps())):
        rows = Counter(rows_of(epoch))
        assert rows <= everything
        if float(epoch[-1][1]).is_integer():
            assert rows == everything


@given(plans())
def test_steps_and_batches_are_full_but_for_the_last_of_an_epoch(made: Plan) -> None:
    for epoch in epochs_of(list(made.steps())):
        batches = [batch for _, _, step in epoch for batch in step]
        whole = float(epoch[-1][1]).is_integer()
        assert all(len(step) == made.micro_batches for _, _, step in (epoch[:-1] if whole else epoch))
        assert 1 <= len(epoch[-1][2]) <= made.micro_batches
        if made.pack_to is None:
            assert all(len(batch) == made.batch_size for batch in (batches[:-1] if whole else batches))
        assert all(batches)


@given(plans())
def test_the_epoch_after_a_step_is_the_share_of_rows_seen(made: Plan) -> None:
    done = [epoch for _, epoch, _ in made.steps()]
    assert done == sorted(set(done)) and done[0] > 0
    if made.max_steps is None:
        # A whole number of steps: at least what was asked for, and less than one step more.
        last = len(epochs_of(list(made.steps()))[-1])
        assert made.epochs - 1e-9 <= done[-1] < made.epochs + (done[-1] - (done[-2] if len(done) > 1 else 0)) + 1e-9
        assert last >= 1


@given(plans(), st.booleans())
def test_the_longest_batch_is_the_longest(made: Plan, padded: bool) -> None:
    def tokens(batch: MicroBatch) -> int:
        lengths = [made.lengths[row] for row in batch]
        return max(lengths) * len(lengths) if padded else sum(lengths)

    batches = [batch for _, _, step in made.steps() for batch in step]
    assert made.longest(padded) in batches
    assert tokens(made.longest(padded)) == max(map(tokens, batches))


@pytest.mark.parametrize(
    ("rows", "epochs", "steps"),
    [
        (10, 1.0, 10),
        (10, 1.1, 11),
        (10, 2.2, 22),
        (10, 2.3, 23),
        (10, 0.3, 3),
        (10, 0.01, 1),
        (7, 1.5, 11),
        (3, 0.34, 2),
    ],
)
def test_part_of_an_epoch_is_rounded_up_to_whole_steps_and_no_further(rows: int, epochs: float, steps: int) -> None:
    """2.2 - 2 is a little over 0.2 in floating point, and a tenth of ten steps is one."""
    assert plan(rows, epochs=epochs).num_steps == steps
    assert len(list(plan(rows, epochs=epochs).steps())) == steps


def test_random_orders_differ_by_epoch_and_seed_and_by_nothing_else() -> None:
    first, second = epochs_of(list(plan(50, epochs=2.0).steps()))
    assert rows_of(first) != rows_of(second) != list(range(50))
    assert rows_of(first) != rows_of(list(plan(50, seed=1).steps()))
    assert rows_of(first) == rows_of(list(plan(50, batch_size=7, micro_batches=3).steps()))


def test_sequential_order_is_that_of_the_rows() -> None:
    made = plan(5, batch_size=2, micro_batches=2, epochs=2.0, sampling="sequential")
    assert [step for _, _, step in made.steps()] == [((0, 1), (2, 3)), ((4,),)] * 2
    assert [epoch for _, epoch, _ in made.steps()] == [0.5, 1.0, 1.5, 2.0]


def test_max_steps_stops_inside_an_epoch_or_goes_beyond_the_epochs() -> None:
    assert rows_of(list(plan(5, max_steps=3, sampling="sequential").steps())) == [0, 1, 2]
    assert rows_of(list(plan(2, max_steps=5, sampling="sequential").steps())) == [0, 1, 0, 1, 0]


@given(LENGTHS, st.integers(1, 120), st.randoms())
def test_packs_hold_whole_rows_within_their_capacity(lengths: tuple[int, ...], capacity: int, random: object) -> None:
    order = list(range(len(lengths)))
    random.shuffle(order)  # type: ignore[attr-defined]
    packs = pack(order, lengths, capacity)
    assert sorted(row for rows in packs for row in rows) == sorted(order)
    for rows in packs:
        assert sum(lengths[row] for row in rows) <= capacity or len(rows) == 1
        assert [order.index(row) for row in rows] == sorted(order.index(row) for row in rows)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_no_two_packs_would_fit_into_one(lengths: list[int]) -> None:
    """Of any two, the later was begun because its first row did not fit into the earlier: best fit is at most 1.7 x."""
    packs = pack(range(len(lengths)), lengths, 50)
    sizes = [sum(lengths[row] for row in rows) for rows in packs]
    assert all(a + b > 50 for a, b in itertools.combinations(sizes, 2))
    assert len(packs) <= math.ceil(1.7 * math.ceil(sum(lengths) / 50)) + 1


def test_a_row_goes_where_the_least_room_is_left() -> None:
    assert pack(range(5), (6, 4, 7, 3, 1), 10) == [(0, 1), (2, 3), (4,)]
    assert pack(range(4), (5, 7, 3, 5), 10) == [(0, 3), (1, 2)]


def test_a_row_over_the_capacity_is_alone_and_closes_nothing_else() -> None:
    assert pack(range(4), (5, 99, 5, 5), 10) == [(0, 2), (1,), (3,)]


def test_packing_many_rows_is_linear() -> None:
    lengths = tuple(1 + (i * 7919) % 50 for i in range(20_000))
    packs = pack(range(len(lengths)), lengths, 64)
    assert sum(lengths) / (64 * len(packs)) > 0.95


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    parts = np.repeat(np.arange(len(sizes)), sizes)
    trained = draw(st.lists(st.integers(1, 40), min_size=len(parts), max_size=len(parts)))
    shares = draw(st.lists(st.floats(0.05, 5), min_size=len(sizes), max_size=len(sizes)))
    return Mixture(parts, np.array(trained), tuple(shares))


@given(mixtures(), st.none() | st.integers(0, 9))
def test_a_source_of_a_mixture_begins_anew_only_when_all_its_rows_have_come(mixture: Mixture, seed: int | None) -> None:
    seen = Counter(row for epoch in range(5) for row in mix(mixture, epoch, seed).tolist())
    for part in range(len(mixture.shares)):
        times = {seen[row] for row in np.flatnonzero(mixture.parts == part)}
        assert max(times) - min(times) <= 1


@given(mixtures(), st.integers(0, 9))
def test_a_mixture_has_its_shares_of_trained_tokens_to_within_a_row(mixture: Mixture, seed: int) -> None:
    total, longest = mixture.trained.sum(), mixture.trained.max()
    rows = np.concatenate([mix(mixture, epoch, seed) for epoch in range(3)])
    for part, share in enumerate(mixture.shares):
        got = mixture.trained[rows][mixture.parts[rows] == part].sum()
        assert abs(got - 3 * total * share / sum(mixture.shares)) <= longest


def test_a_mixture_takes_a_small_source_often_and_a_large_one_in_part() -> None:
    mixture = Mixture(np.repeat([0, 1], [10, 90]), np.full(100, 7), (1.0, 1.0))
    made = plan(100, epochs=2.0, mixture=mixture)
    seen = Counter(rows_of(list(made.steps())))
    assert {seen[row] for row in range(10)} == {10} and {seen[row] for row in range(10, 100)} == {1, 2}
    assert made.trained_by_part() == [700, 700]
    order = rows_of(list(plan(100, sampling="sequential", mixture=mixture).steps()))
    assert [row < 10 for row in order] == [True, False] * 50, "spread evenly"


def test_a_mixture_shuffles_differently_in_each_epoch_and_with_each_seed() -> None:
    mixture = Mixture(np.zeros(50, np.int64), np.ones(50, np.int64), (1.0,))
    orders = [tuple(mix(mixture, epoch, seed)) for epoch in range(2) for seed in (1, 2)]
    assert len(set(orders)) == 4


@given(plans(), st.integers(1, 4))
def test_ranks_share_the_micro_batches_of_the_same_steps(made: Plan, world_size: int) -> None:
    ranks = [list(replace(made, rank=rank, world_size=world_size).steps()) for rank in range(world_size)]
    for step, *parts in zip(made.steps(), *ranks, strict=True):
        assert all(part[:2] == step[:2] for part in parts)
        dealt = [batch for turn in itertools.zip_longest(*(part[2] for part in parts)) for batch in turn if batch]
        assert tuple(dealt) == step[2]


@given(plans(), st.booleans())
def test_the_longest_micro_batch_is_the_one_found_by_looking_at_all(made: Plan, padded: bool) -> None:
    def size(batch: MicroBatch) -> int:
        lengths = [made.lengths[row] for row in batch]
        return len(lengths) * max(lengths) if padded else sum(lengths)

    assert size(made.longest(padded)) == max(size(batch) for _, _, step in made.steps() for batch in step)


def test_a_million_rows_are_planned_and_packed_in_seconds() -> None:
    lengths = np.random.default_rng(0).integers(10, 2000, 1_000_000)
    made = replace(plan(1), lengths=lengths, batch_size=4, micro_batches=4, pack_to=4096)
    started = time.process_time()
    assert made.num_steps > 10_000 and made.longest(padded=False)
    assert time.process_time() - started < 20
