"""The held-out part, the rules for over-long rows, the figures and the fingerprint."""

import copy
import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tunekit.data.prepare import fingerprint, prepare, split
from tunekit.data.rows import Conversation, Text, Tokens
from tunekit.errors import DataError


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte, so that lengths can be read off the rows."""
    vocab = {piece: i for i, piece in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    byte_level = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level, eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m.role[0] + m.content + eos_token }}{% endfor %}"
    return fast


def text(prompt: int, completion: int, line: int = 1) -> Text:
    """A row of `prompt` + `completion` + 1 (EOS) tokens."""
    return Text("p" * prompt, "c" * completion, f"a.jsonl:{line}")


def tokens(ids: list[int], trained: list[bool]) -> Tokens:
    return Tokens(np.array(ids, np.int32), np.array(trained, bool), "a.jsonl:1")


ROWS = [text(5, 4, 1), text(5, 14, 2), text(25, 4, 3)]  # 10, 20 and 30 tokens


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_the_ids_that_end_answers_are_known(tokenizer: Any, loss_on: str) -> None:
    """As in base models: the template ends a turn with a special token that is not the tokenizer's eos_token."""
    chatty = copy.deepcopy(tokenizer)
    chatty.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    chatty.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = tuple({"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant"))
    end, eos = chatty.convert_tokens_to_ids("<|im_end|>"), chatty.eos_token_id
    chat = Conversation(messages, "a:1")
    assert prepare([chat], chatty, max_length=99, loss_on=loss_on).terminators == {end}
    prepared = prepare([chat, text(5, 4)], chatty, max_length=30, loss_on=loss_on, overlong="truncate")
    assert prepared.terminators == {end, eos}


def test_the_summary_counts_rows_tokens_and_lengths(tokenizer: Any) -> None:
    summary = prepare(ROWS, tokenizer, max_length=30).summary
    assert (summary.rows, summary.tokens, summary.trained) == (3, 60, 5 + 15 + 5)
    assert summary.trained_share == 25 / 60
    assert summary.lengths == {"min": 10, "median": 20, "p90": 30, "p99": 30, "max": 30}
    assert (summary.overlong, summary.dropped, summary.truncated, summary.answers_cut) == (0, 0, 0, 0)


def test_overlong_rows_are_an_error_that_names_them_and_both_fixes(tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        prepare(ROWS, tokenizer, max_length=15)
    message = str(caught.value)
    assert "2 of 3 rows are over data.max_length: 15" in message
    assert "a.jsonl:2: 20 tokens" in message and "a.jsonl:3: 30 tokens" in message
    assert "data.max_length: 30" in message and "drop or truncate" in message


def test_overlong_rows_are_dropped_and_counted_aloud(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tunekit"):
        prepared = prepare(ROWS, tokenizer, max_length=15, overlong="drop")
    assert [row.source for row in prepared.tokens] == ["a.jsonl:1"]
    assert (prepared.summary.overlong, prepared.summary.dropped, prepared.summary.truncated) == (2, 2, 0)
    assert "2 rows over max_length" in caplog.text and "2 dropped" in caplog.text


def test_overlong_rows_are_cut_at_the_end_and_dropped_where_no_answer_is_left(tokenizer: Any) -> None:
    prepared = prepare(ROWS, tokenizer, max_length=15, overlong="truncate")
    assert [(row.source, len(row.ids), int(row.trained.sum())) for row in prepared.tokens] == [
        ("a.jsonl:1", 10, 5),
        ("a.jsonl:2", 15, 10),
    ]
    summary = prepared.summary
    assert (summary.rows, summary.tokens, summary.overlong) == (2, 25, 2)
    assert (summary.truncated, summary.dropped, summary.answers_cut) == (2, 1, 2)
    assert summary.lengths["max"] == 30


def test_a_cut_that_takes_no_trained_token_is_no_cut_answer(tokenizer: Any) -> None:
    messages = (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "x" * 9},
    )
    summary = prepare([Conversation(messages, "a:1")], tokenizer, max_length=8, overlong="truncate").summary
    assert (summary.truncated, summary.answers_cut, summary.dropped) == (1, 0, 0)


def test_rows_without_a_trained_token_are_named(tokenizer: Any) -> None:
    silent = Conversation(
        ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": False}), "a:2"
    )
    with pytest.raises(DataError, match=r"1 of 2 rows have no trained token under data.loss_on: assistant:\n  a:2"):
        prepare([text(1, 1), silent], tokenizer, max_length=100)


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_nothing_left_is_an_error(tokenizer: Any, overlong: str) -> None:
    with pytest.raises(DataError, match="none of 3 rows is left"):
        prepare(ROWS, tokenizer, max_length=3, overlong=overlong)
    with pytest.raises(DataError, match="no rows"):
        prepare([], tokenizer, max_length=3, overlong=overlong)


@pytest.mark.parametrize(
    ("rows", "eval_split", "held_out"),
    [
        *((1000, None, 100), (5000, None, 100), (50, None, 5), (2, None, 1), (1, None, 0), (0, None, 0)),
        *((50, 0.2, 10), (50, 0.001, 1), (1, 0.5, 0), (50, 7, 7), (50, 0, 0), (1, 0, 0)),
    ],
)
def test_the_size_of_the_held_out_part(rows: int, eval_split: float | int | None, held_out: int) -> None:
    assert [len(part) for part in split(range(rows), eval_split, 1)] == [rows - held_out, held_out]


@pytest.mark.parametrize(("rows", "eval_split"), [(10, 10), (10, 11), (2, 0.9)])
def test_holding_out_everything_is_an_error(rows: int, eval_split: float | int) -> None:
    with pytest.raises(DataError, match="eval_split"):
        split(range(rows), eval_split, 1)


@given(rows=st.integers(2, 300), seed=st.integers(0, 2**32))
def test_a_split_is_a_partition_in_order_and_depends_on_the_seed_alone(rows: int, seed: int) -> None:
    train, held_out = split(range(rows), None, seed)
    assert sorted(train + held_out) == list(range(rows))
    assert train == sorted(train) and held_out == sorted(held_out)
    assert split(range(rows), None, seed) == (train, held_out)


def test_another_seed_holds_out_other_rows() -> None:
    assert split(range(1000), None, 1)[1] != split(range(1000), None, 2)[1]


def test_the_fingerprint_sees_ids_masks_order_and_borders_and_nothing_else() -> None:
    base = [tokens([1, 2], [False, True]), tokens([3], [True])]
    others = [
        [tokens([1, 9], [False, True]), tokens([3], [True])],
        [tokens([1, 2], [True, True]), tokens([3], [True])],
        base[::-1],
        [tokens([1], [False]), tokens([2, 3], [True, True])],
        base[:1],
    ]
    assert len({fingerprint(rows) for rows in [base, *others]}) == 6
    zero, zeros = tokens([0], [False]), tokens([0, 0], [False, False])
    assert fingerprint([zero, zeros]) != fingerprint([zeros, zero])
    moved = [Tokens(row.ids, row.trained, "elsewhere:9") for row in base]
    assert fingerprint(moved) == fingerprint(base)
