"""The held-out part, the rules for rejected and over-long rows, the figures and the fingerprint."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stores import store_of, token_row
from tunekit.data.prepare import Rows, all_rows, check_overlong, fingerprint, prepare, split
from tunekit.data.rejected import check_rejected, into_file
from tunekit.data.rows import Rejected, Tokens
from tunekit.data.store import Store
from tunekit.errors import DataError


def row(prompt: int, answer: int, line: int) -> list[Tokens]:
    """`prompt` tokens that are given and `answer` tokens that are trained."""
    ids = np.arange(prompt + answer) + 1000 * line
    return [token_row(ids, ids - 1000 * line >= prompt, f"a.jsonl:{line}")]  # type: ignore[arg-type]


LINES = [row(5, 5, 1), row(5, 15, 2), row(25, 5, 3)]  # 10, 20 and 30 tokens


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(tmp_path / "s", LINES)


def rejects(tmp_path: Path, good: int, bad: int) -> Store:
    lines = [Rejected(f"a.jsonl:{i}", f"reason {i}", {"n": i}, "Correct it.") for i in range(bad)]
    return store_of(tmp_path / f"{good}-{bad}", [*lines, *([row(2, 2, 1)] * good)])


def test_the_summary_counts_rows_tokens_and_lengths(store: Store) -> None:
    summary = prepare(all_rows([store], 30), "error").summary
    assert (summary.rows, summary.tokens, summary.trained) == (3, 60, 25)
    assert summary.trained_share == 25 / 60
    assert summary.lengths == {"min": 10, "median": 20, "p90": 30, "p99": 30, "max": 30}
    assert (summary.overlong, summary.dropped, summary.truncated, summary.answers_cut) == (0, 0, 0, 0)


def test_overlong_rows_are_an_error_that_names_them_and_both_fixes(store: Store) -> None:
    with pytest.raises(DataError) as caught:
        check_overlong(all_rows([store], 15), "error")
    message = str(caught.value)
    assert "2 of 3 rows (66.7%) are over data.max_length: 15; cut there, 2 would lose part of an answer" in message
    assert "a.jsonl:2: 20 tokens" in message and "a.jsonl:3: 30 tokens" in message
    assert "data.max_length: 30" in message and "drop or truncate" in message
    with pytest.raises(DataError) as caught:
        check_overlong(all_rows([store], 15), "error", context=29)
    assert caught.value.fix == "Set data.overlong: drop or truncate.", "no model can be given more than its context"
    for rule in ("drop", "truncate"):
        check_overlong(all_rows([store], 15), rule)


@pytest.mark.parametrize(("long", "accepted"), [(1, True), (2, False)])
def test_overlong_rows_are_an_error_above_one_percent_and_dropped_aloud_below(
    tmp_path: Path, long: int, accepted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rows = all_rows([store_of(tmp_path / "s", [row(5, 15, 1)] * long + [row(5, 5, 2)] * (100 - long))], 15)
    if not accepted:
        with pytest.raises(DataError, match=r"2 of 100 rows \(2\.0%\)"):
            check_overlong(rows, "error")
        return
    check_overlong(rows, "error")
    with caplog.at_level(logging.INFO, logger="tunekit"):
        prepared = prepare(rows, "error")
    assert (prepared.summary.rows, prepared.summary.dropped) == (99, 1) and "1 dropped" in caplog.text


def test_overlong_rows_are_dropped_and_counted_aloud(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tunekit"):
        prepared = prepare(all_rows([store], 15), "drop")
    assert [each.source for each in prepared.tokens] == ["a.jsonl:1"]
    assert (prepared.summary.overlong, prepared.summary.dropped, prepared.summary.truncated) == (2, 2, 0)
    assert "2 rows over max_length" in caplog.text and "2 dropped" in caplog.text


def test_overlong_rows_are_cut_at_the_end_and_dropped_where_no_answer_is_left(store: Store) -> None:
    prepared = prepare(all_rows([store], 15), "truncate")
    assert [(each.source, len(each.ids), int(each.trained.sum())) for each in prepared.tokens] == [
        ("a.jsonl:1", 10, 5),
        ("a.jsonl:2", 15, 10),
    ]
    assert prepared.tokens.lengths.tolist() == [10, 15] and prepared.tokens.trained.tolist() == [5, 10]
    summary = prepared.summary
    assert (summary.rows, summary.tokens, summary.overlong) == (2, 25, 2)
    assert (summary.truncated, summary.dropped, summary.answers_cut) == (2, 1, 2)
    assert summary.lengths["max"] == 30


def test_a_cut_that_takes_no_trained_token_is_no_cut_answer(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", [[token_row(range(20), [0, 1] + [0] * 18)]])
    summary = prepare(all_rows([store], 8), "truncate").summary
    assert (summary.truncated, summary.answers_cut, summary.dropped) == (1, 0, 0)


def test_pairs_that_a_cut_makes_equal_are_left_out(tmp_path: Path) -> None:
    def answer(*tail: int) -> Tokens:
        return token_row([1, 2, 3, 4, *tail], [0, 0, 1, 1, *(1 for _ in tail)])

    rows = [[answer(5), answer(6)], [answer(7, 8, 9), answer(7, 8, 8)], [answer(1, 1, 1), answer(2, 2, 2)]]
    prepared = prepare(all_rows([store_of(tmp_path / "s", rows, kind="pairs")], 6), "truncate")
    assert [each.ids[-1] for each in prepared.tokens] == [5, 6, 1, 2]
    assert (prepared.summary.examples, prepared.summary.dropped, prepared.summary.truncated) == (2, 1, 2)


@pytest.mark.parametrize("overlong", ["error", "drop", "truncate"])
def test_nothing_left_is_an_error(store: Store, tmp_path: Path, overlong: str) -> None:
    with pytest.raises(DataError, match="none of 3 rows is left"):
        prepare(all_rows([store], 3), overlong)
    with pytest.raises(DataError, match=r"a\.jsonl: no row that can be used"):
        all_rows([store_of(tmp_path / "empty", [])], 3)


def test_of_a_pair_both_answers_are_kept_or_neither(tmp_path: Path) -> None:
    pairs = [[*row(2, 3, 1), *row(2, 4, 1)], [*row(2, 3, 2), *row(2, 40, 2)], [*row(2, 40, 3), *row(2, 3, 3)]]
    rows = all_rows([store_of(tmp_path / "s", pairs, kind="pairs")], 20)
    dropped, cut = prepare(rows, "drop"), prepare(rows, "truncate")
    assert [each.source for each in dropped.tokens] == ["a.jsonl:1"] * 2
    assert (dropped.summary.rows, dropped.summary.overlong, dropped.summary.dropped) == (1, 2, 2), "a pair is one row"
    assert [len(each.ids) for each in cut.tokens] == [5, 6, 5, 20, 20, 5]
    assert (cut.summary.rows, cut.summary.truncated, cut.summary.answers_cut) == (3, 2, 2)
    with pytest.raises(DataError, match=r"2 of 3 rows(.|\n)*a\.jsonl:2: 42 tokens(.|\n)*a\.jsonl:3: 42 tokens"):
        check_overlong(rows, "error")


def test_a_prompt_that_is_too_long_is_never_cut(tmp_path: Path) -> None:
    prompts = [[token_row(range(length), [0] * length)] for length in (5, 50)]
    rows = all_rows([store_of(tmp_path / "s", prompts, kind="prompts")], 20)
    for rule in ("drop", "truncate"):
        prepared = prepare(rows, rule)
        assert [len(each.ids) for each in prepared.tokens] == [5]
        assert (prepared.summary.truncated, prepared.summary.dropped) == (0, 1)


def test_sources_of_different_kinds_do_not_mix(tmp_path: Path) -> None:
    stores = [
        store_of(tmp_path / kind, LINES, kind=kind, name=f"{kind}.jsonl") for kind in ("conversations", "prompts")
    ]
    with pytest.raises(DataError, match=r"conversations \(conversations\.jsonl\), prompts \(prompts\.jsonl\)"):
        all_rows(stores, 99)


def test_rows_of_several_stores_know_their_source_and_item(tmp_path: Path) -> None:
    first, second = (store_of(tmp_path / name, LINES, name=name) for name in ("x", "y"))
    rows = all_rows([first, second], 99)
    assert [each.part for each in rows] == [0, 0, 0, 1, 1, 1] and len(set(rows.items.tolist())) == 6
    some = rows.some(np.array([4, 1]))
    assert [each.part for each in some] == [1, 0] and some.lengths.tolist() == [20, 20]
    assert some.row(0).completion == "text 1"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("good", "bad", "limit", "accepted"),
    [
        *((9, 1, 0, False), (9, 1, 1, True), (9, 2, 1, False), (8, 2, 0.2, True), (8, 2, 0.19, False)),
        (9, 0, 0, True),
    ],
)
def test_rejected_rows_are_accepted_up_to_a_number_or_a_share(
    tmp_path: Path, good: int, bad: int, limit: float, accepted: bool
) -> None:
    stores = [rejects(tmp_path, good, bad)]
    if accepted:
        assert check_rejected(stores, limit) == bad
        return
    with pytest.raises(DataError) as caught:
        check_rejected(stores, limit)
    message = str(caught.value)
    assert f"{bad} of {good + bad} rows cannot be used" in message and "a.jsonl:0: reason 0" in message
    assert "Correct it." in message and "data.max_rejected" in message


def test_rejected_rows_are_written_with_place_reason_and_content_also_when_they_are_too_many(tmp_path: Path) -> None:
    file = tmp_path / "rejected.jsonl"
    with pytest.raises(DataError, match="and 2 more"):
        check_rejected([rejects(tmp_path, 3, 7)], 2, file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(each["source"], each["reason"], each["row"]) for each in lines] == [
        (f"a.jsonl:{i}", f"reason {i}", {"n": i}) for i in range(7)
    ]


def test_rows_of_a_run_before_do_not_stay_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rejected.jsonl"
    check_rejected([rejects(tmp_path, 3, 7)], 7, file)
    check_rejected([rejects(tmp_path, 3, 2)], 2, file)
    assert len(file.read_text().splitlines()) == 2
    check_rejected([rejects(tmp_path, 3, 0)], 2, file)
    assert not file.exists()


@pytest.mark.parametrize("cut", [0, 1, 20, 60, 61, 100])
def test_a_file_torn_by_a_kill_goes_on_with_each_row_once(tmp_path: Path, cut: int) -> None:
    rows, file = [Rejected(f"a.jsonl:{i}", "reason", {"n": i}) for i in range(3)], tmp_path / "rejected.jsonl"
    for row in rows:
        into_file(file)(row)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) - cut])
    reject = into_file(file)
    for row in rows:
        reject(row)
    assert file.read_bytes() == whole


def items(count: int) -> np.ndarray:
    return np.arange(count)


@pytest.mark.parametrize(
    ("rows", "eval_split", "held_out"),
    [
        *((1000, None, 100), (5000, None, 100), (50, None, 5), (2, None, 1), (1, None, 0), (0, None, 0)),
        *((50, 0.2, 10), (50, 0.001, 1), (1, 0.5, 0), (50, 7, 7), (50, 0, 0), (1, 0, 0)),
    ],
)
def test_the_size_of_the_held_out_part(rows: int, eval_split: float | int | None, held_out: int) -> None:
    assert split(items(rows), eval_split, 1).sum() == held_out


@pytest.mark.parametrize(("rows", "eval_split"), [(10, 10), (10, 11), (2, 0.9)])
def test_holding_out_everything_is_an_error(rows: int, eval_split: float | int) -> None:
    with pytest.raises(DataError, match="eval_split"):
        split(items(rows), eval_split, 1)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=200), st.integers(0, 2**32))
def test_a_split_keeps_the_rows_of_an_item_together_and_depends_on_the_seed_alone(sizes: list[int], seed: int) -> None:
    each = np.repeat(np.arange(len(sizes)), sizes)
    mask = split(each, None, seed)
    assert not set(each[mask]) & set(each[~mask])
    assert len(set(each[mask])) == min(100, max(1, round(len(sizes) * 0.1)))
    assert (split(each, None, seed) == mask).all()


def test_another_seed_holds_out_other_rows() -> None:
    assert (split(items(1000), None, 1) != split(items(1000), None, 2)).any()


def test_rows_are_a_sequence_of_their_cut_tokens(store: Store) -> None:
    rows = all_rows([store], 15)
    assert isinstance(rows, Rows) and [len(each.ids) for each in rows[:2]] == [10, 15]
    assert len(rows.whole(2).ids) == 30


def test_the_fingerprint_sees_ids_masks_order_and_borders_and_nothing_else() -> None:
    base = [token_row([1, 2], [False, True]), token_row([3], [True])]
    others = [
        [token_row([1, 9], [False, True]), token_row([3], [True])],
        [token_row([1, 2], [True, True]), token_row([3], [True])],
        base[::-1],
        [token_row([1], [False]), token_row([2, 3], [True, True])],
        base[:1],
    ]
    assert len({fingerprint(rows) for rows in [base, *others]}) == 6
    zero, zeros = token_row([0], [False]), token_row([0, 0], [False, False])
    assert fingerprint([zero, zeros]) != fingerprint([zeros, zero])
    moved = [Tokens(row.ids, row.trained, "elsewhere:9") for row in base]
    assert fingerprint(moved) == fingerprint(base)
