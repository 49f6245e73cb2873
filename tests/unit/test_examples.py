"""Token rows as pairs and labelled answers: what each holds, and which answers a KL divergence is estimated from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chats import CHATML, assistant, tokenizer, user
from tunekit.data import sources
from tunekit.data.examples import Examples, _cycle, _mismatched
from tunekit.data.loader import PlannedLoader
from tunekit.data.plan import Plan
from tunekit.data.prepare import Rows, all_rows
from tunekit.data.rendering import PLAIN
from tunekit.data.rows import Labelled, Pair, Tokens
from tunekit.data.tokenise import Reading, tokenised
from tunekit.errors import DataError

TOK = tokenizer(CHATML)
ANSWERS = ["yes", "no, never", "perhaps it is so", "I do not know", "x" * 30]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))


def rows_of(rows: list[dict[str, Any]], folder: Path, max_length: int = 10_000) -> Rows:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return all_rows([tokenised(Reading(sources.find(str(folder / "rows.jsonl"))), TOK, PLAIN)], max_length)


def pairs(folder: Path, max_length: int = 10_000, count: int = 5) -> Examples:
    rows = [
        {"prompt": [user(f"question {i}")], "chosen": [assistant(ANSWERS[i])], "rejected": [assistant(ANSWERS[i - 1])],
         **({"margin": i / 2} if i else {})}
        for i in range(count)
    ]  # fmt: skip
    return Examples(rows_of(rows, folder, max_length))


def labelled(folder: Path, max_length: int = 10_000, seed: int = 0, count: int = 5) -> Examples:
    rows = [
        {"prompt": [user(f"question {i}" * (i + 1))], "completion": [assistant(ANSWERS[i])], "label": i % 2 == 0}
        for i in range(count)
    ]
    return Examples(rows_of(rows, folder, max_length), seed)


def text(tokens: Tokens) -> str:
    return str(TOK.decode(tokens.ids))


def prompt(tokens: Tokens) -> str:
    return str(TOK.decode(tokens.ids[: int(tokens.trained.argmax())]))


def answer(tokens: Tokens) -> str:
    return str(TOK.decode(tokens.ids[tokens.trained]))


def test_a_pair_is_two_rows_that_share_their_prompt(tmp_path: Path) -> None:
    examples = pairs(tmp_path)
    assert len(examples) == 5 and len(examples.rows) == 10
    for i, pair in enumerate(examples):
        assert isinstance(pair, Pair)
        asked = f"<|im_start|>user\nquestion {i}<|im_end|>\n<|im_start|>assistant\n"
        assert TOK.decode(pair.chosen.ids[: pair.prompt_length]) == asked
        assert TOK.decode(pair.rejected.ids[: pair.prompt_length]) == asked
        assert answer(pair.chosen) == ANSWERS[i] + "<|im_end|>"
        assert answer(pair.rejected) == ANSWERS[i - 1] + "<|im_end|>"
        assert pair.margin == i / 2 and pair.reference is None
    assert text(examples[-1].chosen) == text(examples[4].chosen)  # type: ignore[union-attr]
    assert [text(each.chosen) for each in examples[1:3]] == [text(examples[i].chosen) for i in (1, 2)]  # type: ignore[union-attr]


def test_the_figures_of_an_example_are_those_of_its_answers(tmp_path: Path) -> None:
    for examples in (pairs(tmp_path), pairs(tmp_path, max_length=40), labelled(tmp_path, max_length=60)):
        answers = [each.answers for each in examples]
        assert examples.lengths.tolist() == [sum(len(each.ids) for each in two) for two in answers]
        assert examples.trained.tolist() == [sum(int(each.trained.sum()) for each in two) for two in answers]
        assert examples.parts.tolist() == [0] * 5


def test_the_reference_rides_along(tmp_path: Path) -> None:
    examples, values = pairs(tmp_path), np.arange(10, dtype=np.float32).reshape(5, 2)
    examples.reference = values
    assert [each.reference for each in examples] == [(2.0 * i, 2.0 * i + 1) for i in range(5)]
    single = labelled(tmp_path)
    single.reference = values
    for i, each in enumerate(single):
        assert isinstance(each, Labelled) and each.mismatched is not None
        assert each.reference == (2.0 * i,) and each.mismatched.reference == (2.0 * i + 1,)


def test_a_loader_gives_each_row_its_own_reference_in_any_order(tmp_path: Path) -> None:
    examples = pairs(tmp_path)
    examples.reference = np.array([[i, -i] for i in range(5)], np.float32)
    plan = Plan(lengths=examples.lengths, batch_size=2, micro_batches=1, epochs=3, max_steps=None, seed=3,
                sampling="random", pack_to=None, mixture=None)  # fmt: skip
    seen = [
        row for step in PlannedLoader(examples, plan, frozenset()).steps(0) for b in step.micro_batches for row in b
    ]
    assert len(seen) == 15
    for row in seen:
        i = int(row.reference[0])  # type: ignore[union-attr,index]
        assert answer(row.chosen) == ANSWERS[i] + "<|im_end|>" and row.reference == (i, -i)  # type: ignore[union-attr]


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(0, 1000))
def test_the_partners_are_one_cycle_through_all_rows(count: int, seed: int) -> None:
    partners = _cycle(count, seed)
    at, visited = 0, []
    for _ in range(count):
        visited.append(at)
        at = int(partners[at])
    assert at == 0 and sorted(visited) == list(range(count))
    assert partners.tolist() == _cycle(count, seed).tolist()


def test_other_seeds_give_other_partners() -> None:
    assert len({tuple(_cycle(9, seed).tolist()) for seed in range(5)}) == 5


def test_a_mismatched_answer_follows_the_prompt_of_the_row(tmp_path: Path) -> None:
    examples = labelled(tmp_path)
    borrowed = []
    for i, each in enumerate(examples):
        assert isinstance(each, Labelled) and each.mismatched is not None
        assert each.label is each.mismatched.label is (i % 2 == 0)
        assert answer(each.tokens) == ANSWERS[i] + "<|im_end|>" and not each.mismatched.mismatched
        other = each.mismatched.tokens
        assert prompt(other) == prompt(each.tokens) == TOK.apply_chat_template(
            [user(f"question {i}" * (i + 1))], add_generation_prompt=True, tokenize=False
        )  # fmt: skip
        assert answer(other) != answer(each.tokens)
        borrowed.append(answer(other))
    assert sorted(borrowed) == sorted(each + "<|im_end|>" for each in ANSWERS), "each answer is lent once"


def test_a_mismatched_row_is_cut_and_has_at_least_one_token_to_score(tmp_path: Path) -> None:
    whole = list(labelled(tmp_path))
    shortest = max(int(each.tokens.trained.argmax()) for each in whole) + 1  # type: ignore[union-attr]
    cut = 0
    for limit in range(shortest, shortest + 30, 7):
        for each, before in zip(labelled(tmp_path, max_length=limit), whole, strict=True):
            assert isinstance(each, Labelled) and each.mismatched and isinstance(before, Labelled) and before.mismatched
            ours, theirs = each.mismatched.tokens, before.mismatched.tokens
            assert len(ours.ids) <= limit and np.array_equal(ours.ids, theirs.ids[: len(ours.ids)])
            assert np.array_equal(ours.trained, theirs.trained[: len(ours.trained)]) and ours.trained.any()
            cut += len(ours.ids) < len(theirs.ids)
    assert cut > 5
    row = Tokens(np.arange(6, dtype=np.int32), np.arange(6) >= 4, "a:1")
    found = _mismatched(row, Tokens(np.arange(10, 16, dtype=np.int32), np.arange(6) >= 2, "a:2"), 4)
    assert found.ids.tolist() == [0, 1, 2, 3, 12] and found.trained.tolist() == [False] * 4 + [True]
    assert found.ids.dtype == np.int32 and found.source == "a:1"


def test_one_labelled_answer_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one labelled answer"):
        labelled(tmp_path, count=1)
