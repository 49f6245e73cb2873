"""Rows read while training: each comes when it should, and a resumed stream goes on with the same."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from tunekit.data import sources
from tunekit.data.notes import SYSTEM_REPLACED
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Rejected, Tokens
from tunekit.data.stream import StreamLoader, StreamSettings
from tunekit.data.tokenise import Reading
from tunekit.errors import DataError
from tunekit.models.tiny_random import tokenizer

TOKENIZER = tokenizer()
SETTINGS: dict[str, Any] = {"batch_size": 2, "micro_batches": 1, "max_length": 500, "seed": 0, "buffer": 7}


def reading(rows: Iterable[dict[str, Any]], part: int = 0) -> Reading:
    name = f"memory:part{part}"
    return Reading(sources.find(name, datasets={f"part{part}": list(rows)}), part=part)


def texts(count: int, length: int = 5, word: str = "x") -> list[dict[str, Any]]:
    return [{"prompt": f"{word}{i}:", "completion": "y" * length} for i in range(count)]


def loader(*sources_of_rows: list[dict[str, Any]], num_steps: int = 10, **options: Any) -> StreamLoader:
    extra = {key: options.pop(key) for key in ("held_out", "kind", "reject") if key in options}
    readings = [reading(rows, part) for part, rows in enumerate(sources_of_rows)]
    settings = StreamSettings(num_steps=num_steps, **{**SETTINGS, **options})
    return StreamLoader(readings, TOKENIZER, Rendering(), settings, **extra)


def names(row: Tokens) -> str:
    return str(TOKENIZER.decode(row.ids.tolist())).split(":")[0]


def given_out(stream: StreamLoader, start: int = 0) -> list[list[list[str]]]:
    return [[[names(row) for row in batch] for batch in step.micro_batches] for step in stream.steps(start)]


def flat(steps: list[list[list[str]]]) -> list[str]:
    return [name for step in steps for batch in step for name in batch]


@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["random", "sequential"]),
)
@settings(deadline=None, max_examples=40)
def test_no_row_comes_again_before_all_have_come(
    rows: int, buffer: int, batch_size: int, micro_batches: int, sampling: str
) -> None:
    options = {"buffer": buffer, "batch_size": batch_size, "micro_batches": micro_batches, "sampling": sampling}
    steps = given_out(loader(texts(rows), num_steps=20, **options))
    assert len(steps) == 20 and {len(step) for step in steps} == {micro_batches}
    assert {len(batch) for step in steps for batch in step} == {batch_size}
    order = flat(steps)
    if sampling == "sequential":
        assert order == list(itertools.islice(itertools.cycle(f"x{i}" for i in range(rows)), len(order)))
    # Shuffling moves a row within its buffer, and rows left over wait for the next one.
    counts = Counter(order)
    assert max(counts.values()) - min(counts.get(f"x{i}", 0) for i in range(rows)) <= 1 + -(-2 * buffer // rows)


@given(st.integers(0, 19), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=25)
def test_a_resumed_stream_goes_on_with_the_same_rows(stop: int, packing: bool, mixed: bool) -> None:
    parts = [texts(23), texts(9, 30, "z")] if mixed else [texts(23)]
    options = {"packing": packing, "max_length": 60, "micro_batches": 2, "num_steps": 20}
    options |= {"shares": (2.0, 1.0)} if mixed else {}
    whole = given_out(loader(*parts, **options))
    stopped = loader(*parts, **options)
    before = [
        [[names(row) for row in batch] for batch in step.micro_batches]
        for step in itertools.islice(stopped.steps(0), stop)
    ]
    resumed = loader(*parts, **options)
    resumed.load_state_dict(stopped.state_dict())
    assert before + given_out(resumed, start=stop) == whole


def test_the_shuffle_depends_on_seed_and_block() -> None:
    first, again, other = (flat(given_out(loader(texts(70), seed=seed, num_steps=14))) for seed in (1, 1, 2))
    assert first == again != other
    blocks = [first[i : i + 7] for i in range(0, 28, 7)]
    places = {tuple(np.argsort([int(name[1:]) for name in block])) for block in blocks}
    assert len(places) == 4, "each block is shuffled differently"


def test_a_mixture_has_its_shares_of_trained_tokens() -> None:
    stream = loader(texts(50, 10, "a"), texts(50, 90, "b"), shares=(3.0, 1.0), buffer=40, num_steps=500)
    trained: Counter[int] = Counter()
    for step in stream.steps(0):
        for row in (row for batch in step.micro_batches for row in batch):
            trained[row.part] += int(row.trained.sum())
    assert trained[0] / trained.total() == pytest.approx(0.75, abs=0.01)


def test_sources_without_shares_follow_each_other() -> None:
    steps = given_out(loader(texts(4, word="a"), texts(6, word="b"), sampling="sequential", num_steps=10))
    assert flat(steps) == [*(f"a{i}" for i in range(4)), *(f"b{i}" for i in range(6))] * 2


@given(st.integers(2, 4))
@settings(deadline=None, max_examples=5)
def test_ranks_share_the_steps_of_one_process(world_size: int) -> None:
    options = {"batch_size": 2, "micro_batches": 3, "num_steps": 8}
    whole = list(loader(texts(24), **options).steps(0))
    ranks = [
        list(loader(texts(24), rank=rank, world_size=world_size, **options).steps(0)) for rank in range(world_size)
    ]
    for step, *parts in zip(whole, *ranks, strict=True):
        dealt = [batch for turn in itertools.zip_longest(*(part.micro_batches for part in parts)) for batch in turn]
        assert [[row.source for row in batch] for batch in dealt if batch] == [
            [row.source for row in batch] for batch in step.micro_batches
        ]


def test_rows_held_out_at_the_beginning_never_come() -> None:
    order = flat(given_out(loader(texts(10), held_out=4, sampling="sequential", num_steps=9)))
    assert order == [f"x{i}" for i in range(4, 10)] * 3


def test_packs_hold_whole_rows_up_to_the_maximum_length() -> None:
    stream = loader(texts(60, 20), packing=True, max_length=70, batch_size=1, buffer=20, num_steps=15)
    for step in stream.steps(0):
        (batch,) = step.micro_batches
        assert 1 <= sum(len(row.ids) for row in batch) <= 70
        assert all(row.ids[-1] == TOKENIZER.eos_token_id for row in batch)


def test_the_longest_batch_is_as_long_as_rows_may_get() -> None:
    (row, _) = loader(texts(9), max_length=123).longest(padded=False)
    assert len(row.ids) == 123 and row.trained.sum() == 122


def test_what_rendering_changes_is_said_after_the_first_block_and_in_all_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ask, say = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    own = {"messages": [{"role": "system", "content": "Mine."}, ask, say]}
    rows = [own, *[{"messages": [ask, say]}] * 29] * 2
    rendering = Rendering(system="Ours.", system_mode="replace")
    settings = StreamSettings(num_steps=90, **SETTINGS)
    with caplog.at_level(logging.INFO, logger="tunekit"):
        stream = StreamLoader([reading(rows)], TOKENIZER, rendering, settings)
    assert f"data.streaming: 2 {SYSTEM_REPLACED}" in caplog.text, "a chunk of rows is rendered together"
    given_out(stream)
    assert stream.notes == {SYSTEM_REPLACED: 2}, "in the first of three passes"
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="tunekit"):
        counts = stream.report()
    assert caplog.messages[0] == f"data.streaming: 2 {SYSTEM_REPLACED}"
    assert counts == {"rows": 60, "rejected": 0, "overlong": 0, "answers_cut": 0} and "rows 60" in caplog.messages[1]
    stopped = StreamLoader([reading(rows)], TOKENIZER, rendering, settings)
    stopped.load_state_dict(stream.state_dict())
    assert not stopped.notes, "of the rows after those that were seen, in a later pass"


def test_notes_of_a_stream_are_warnings_by_their_share_of_the_rows(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "\nHello"}]}] * 4
    merging = tokenizer()
    merging.backend_tokenizer.model = models.BPE(vocab={**merging.get_vocab(), "ĊĊ": 300}, merges=[("Ċ", "Ċ")])
    StreamLoader([reading(rows)], merging, Rendering(), StreamSettings(num_steps=1, **SETTINGS))
    (record,) = [each for each in caplog.records if "not quite the one" in each.message]
    assert record.levelno == logging.WARNING


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_the_ids_that_end_answers_are_those_that_end_turns(loss_on: str) -> None:
    ending = tokenizer()
    ending.chat_template += "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"H{i}"}]} for i in range(9)
    ]
    settings = StreamSettings(num_steps=1, **{**SETTINGS, "max_length": 30, "overlong": "truncate"})
    stream = StreamLoader([reading(rows)], ending, Rendering(loss_on=loss_on), settings)
    assert stream.terminators == {ending.convert_tokens_to_ids("<|im_end|>")}


BAD = {"prompt": "x", "completion": 7}


def test_ids_that_end_answers_of_a_later_source_are_known_once_they_came_also_after_a_resume() -> None:
    ask, other = {"role": "user", "content": "Hi"}, tokenizer()
    other.eos_token = "<|endoftext|>"
    chats = [{"messages": [ask, {"role": "assistant", "content": f"{i}"}]} for i in range(12)]
    plan = StreamSettings(num_steps=12, **SETTINGS)
    readings = [reading(chats, 0), reading(texts(12), 1)]
    stream, fresh = (StreamLoader(readings, other, Rendering(), plan) for _ in range(2))
    end, eos = other.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert stream.terminators == {end}
    given_out(stream)
    assert stream.terminators == {end, eos}
    fresh.load_state_dict(stream.state_dict())
    assert fresh.terminators == {end, eos}


def test_every_row_must_be_of_the_kind_that_is_trained_on() -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    stream = loader(texts(20), [pair] * 20, kind="conversations", num_steps=20, sampling="sequential")
    with pytest.raises(DataError, match=r"part1\[0\]: the rows are pairs, and this command takes conversations"):
        given_out(stream)


def test_the_format_is_that_of_the_first_good_row_wherever_a_resume_begins() -> None:
    rows: list[Any] = ["no row", *texts(11), *[{"text": f"x{i}:"} for i in range(9)]]
    options: dict[str, Any] = {"max_rejected": 0.9, "num_steps": 10, "sampling": "sequential"}
    whole, stopped, resumed = (loader(rows, **options) for _ in range(3))
    assert len(flat(given_out(whole))) == 20 and whole.counts.rejected == 10
    for _ in zip(range(6), stopped.steps(0), strict=False):
        pass
    resumed.load_state_dict(stopped.state_dict())
    assert flat(given_out(resumed, 6)) == [f"x{i}" for i in (1, 2, 3, 4, 5, 6, 7, 8)]


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_resume_counts_no_rejected_or_overlong_row_twice(stop: int) -> None:
    rows = [*texts(9), BAD, *texts(9), *texts(1, 600), *texts(9), BAD, *texts(9)]
    options: dict[str, Any] = {"max_rejected": 2, "overlong": "drop", "num_steps": 20}
    whole, stopped, resumed = (loader(rows, **options) for _ in range(3))
    given_out(whole)
    for _ in zip(range(stop), stopped.steps(0), strict=False):
        pass
    resumed.load_state_dict(stopped.state_dict())
    given_out(resumed, stop)
    assert resumed.counts == whole.counts and (whole.counts.rejected, whole.counts.overlong) == (2, 1)


@pytest.mark.parametrize(
    ("limit", "bad", "accepted"), [(0, 1, False), (2, 2, True), (2, 3, False), (0.25, 4, True), (0.1, 4, False)]
)
def test_rejected_rows_are_told_and_accepted_up_to_the_limit(limit: float, bad: int, accepted: bool) -> None:
    told: list[Rejected] = []
    rows = [*texts(8), *([BAD] * bad), *texts(12)]

    def run() -> None:
        given_out(loader(rows, max_rejected=limit, reject=told.append, num_steps=30))

    if accepted:
        run()
        assert len(told) == bad, "once each, though the rows are read several times"
        return
    with pytest.raises(DataError, match=r"rows cannot be used(.|\n)*memory:part0\[8\](.|\n)*data.max_rejected"):
        run()


@pytest.mark.parametrize(("long", "accepted"), [(1, True), (3, False)])
def test_overlong_rows_are_an_error_above_one_percent(long: int, accepted: bool) -> None:
    rows = [*texts(100 - long), *texts(long, 600, "long")]
    if accepted:
        order = flat(given_out(loader(rows, buffer=99, num_steps=60)))
        assert not any(name.startswith("long") for name in order)
        return
    with pytest.raises(DataError, match=r"3 of the first 100 rows are over data\.max_length: 500; cut there, 3 would"):
        given_out(loader(rows, buffer=99, num_steps=60))


def test_overlong_rows_are_cut_or_dropped_where_the_recipe_says_so() -> None:
    rows = [*texts(5), *texts(5, 600, "long")]
    lengths = {
        rule: {
            len(row.ids)
            for step in loader(rows, overlong=rule).steps(0)
            for batch in step.micro_batches
            for row in batch
        }
        for rule in ("drop", "truncate")
    }
    assert max(lengths["drop"]) < 500 and max(lengths["truncate"]) == 500


def test_a_source_without_a_usable_row_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(DataError, match="no row of it can be trained on"):
        loader(texts(5, 600), overlong="drop")
    with pytest.raises(DataError, match="memory:part1"):
        given_out(loader(texts(5), [], shares=(1.0, 1.0)))
