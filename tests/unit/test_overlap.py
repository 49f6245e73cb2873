"""Copies and leaks: found where they were put, and nowhere else."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stores import store_of, token_row
from tunekit.data.overlap import NGRAM, find_overlap, ngram_shares, sentences
from tunekit.data.prepare import Rows, all_rows
from tunekit.data.rows import Tokens


def rows_of(folder: Path, ids: Sequence[Sequence[int]], name: str = "a.jsonl") -> Rows:
    rows: list[list[Tokens]] = [[token_row(each, [1] * len(each), f"{name}:{i}")] for i, each in enumerate(ids)]
    return all_rows([store_of(folder, rows, name=name, chunk=2)], 10**6)


def random_ids(count: int, length: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, 10**6, (count, length)).tolist()


def test_copies_exact_leaks_and_ngram_leaks_are_counted_and_named(tmp_path: Path) -> None:
    texts = random_ids(30, 40)
    train = rows_of(tmp_path / "train", [*texts, texts[3]])
    leaked = texts[7][:30] + random_ids(1, 10, 1)[0]
    held_out = rows_of(tmp_path / "held", [texts[5], leaked, *random_ids(3, 40, 2)], "b.jsonl")
    found = find_overlap(train, held_out)
    assert (found.duplicates, found.exact, found.ngram) == (1, 1, 1)
    said = list(sentences(found))
    assert "a.jsonl:30 = a.jsonl:3" in said[0]
    assert "b.jsonl:0 = a.jsonl:5" in said[1]
    assert "b.jsonl:1 (64%)" in said[2], "30 - 13 + 1 of 40 - 13 + 1 n-grams"


def test_clean_data_says_nothing(tmp_path: Path) -> None:
    found = find_overlap(rows_of(tmp_path / "a", random_ids(20, 30)), rows_of(tmp_path / "b", random_ids(5, 30, 9)))
    assert list(sentences(found)) == []
    assert list(sentences(find_overlap(rows_of(tmp_path / "c", random_ids(4, 5)), None))) == []


def test_what_several_held_out_rows_share_is_no_leak(tmp_path: Path) -> None:
    system = random_ids(1, 100, 5)[0]
    train = rows_of(tmp_path / "a", [system + each for each in random_ids(5, 20)])
    held_out = rows_of(tmp_path / "b", [system + each for each in random_ids(3, 20, 7)])
    assert ngram_shares(train, held_out).max() == 0


def test_a_mask_makes_another_row_and_a_row_shorter_than_an_ngram_has_none(tmp_path: Path) -> None:
    short = list(range(NGRAM - 1))
    train = rows_of(tmp_path / "a", [short])
    other = all_rows([store_of(tmp_path / "b", [[token_row(short, [0] + [1] * (len(short) - 1))]])], 99)
    found = find_overlap(train, other)
    assert (found.exact, found.ngram) == (0, 0)


@given(st.lists(st.lists(st.integers(0, 2), max_size=40), min_size=1, max_size=12), st.integers(1, 11))
@settings(deadline=None, max_examples=60)
def test_shares_are_those_of_a_search_by_hand(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[int]], cut: int
) -> None:
    texts = [text or [0] for text in texts]
    train_ids, held_ids = texts[cut:] or [[9]], texts[:cut]

    def grams(ids: list[int]) -> set[tuple[int, ...]]:
        return {tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)}

    trained = set().union(*map(grams, train_ids))
    expected = []
    for i, ids in enumerate(held_ids):
        own = grams(ids) - set().union(*(grams(each) for k, each in enumerate(held_ids) if k != i))
        expected.append(len(own & trained) / len(own) if own else 0.0)
    folder = tmp_path_factory.mktemp("overlap")
    shares = ngram_shares(rows_of(folder / "a", train_ids), rows_of(folder / "b", held_ids))
    assert shares.tolist() == pytest.approx(expected)


def test_a_pair_is_one_row_and_equal_where_both_answers_are(tmp_path: Path) -> None:
    prompt, one, two, three = random_ids(4, 30)

    def pairs(*answers: tuple[list[int], list[int]]) -> list[list[Tokens]]:
        mask = [0] * 30 + [1] * 30
        return [[token_row(prompt + ids, mask, f"p:{i}") for ids in pair] for i, pair in enumerate(answers)]

    train = all_rows([store_of(tmp_path / "a", pairs((one, two), (one, three), (one, two)), kind="pairs")], 999)
    held_out = all_rows([store_of(tmp_path / "b", pairs((two, one), (one, three)), kind="pairs")], 999)
    found = find_overlap(train, held_out)
    assert (found.duplicates, found.exact) == (1, 1)
    assert found.examples["duplicates"] == ["p:2 = p:0"] and found.examples["exact"] == ["p:1 = p:1"]
