"""Formats: what is detected, what a row becomes, and what is refused with its place."""

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekit.data.formats import FORMATS, convert, detect
from tunekit.data.rows import Conversation, Text
from tunekit.errors import DataError, RecipeError

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


def one(row: dict[str, Any], format: str = "auto") -> Conversation | Text:
    return convert([(row, "a.jsonl:1")], format)[0]


def error_of(row: dict[str, Any], format: str = "auto") -> str:
    with pytest.raises(DataError) as caught:
        one(row, format)
    assert "a.jsonl:1" in caught.value.message
    return str(caught.value)


def test_messages_keep_their_marks_and_lose_nulls() -> None:
    marked = {**ASSISTANT, "train": False, "tool_calls": None}
    assert one({"messages": [USER, marked, USER, ASSISTANT]}) == Conversation(
        (USER, {**ASSISTANT, "train": False}, USER, ASSISTANT), "a.jsonl:1"
    )


def test_string_prompts_are_raw_text_and_message_prompts_are_not_trained() -> None:
    assert one({"prompt": "2+2=", "completion": "4"}) == Text("2+2=", "4", "a.jsonl:1")
    conversation = one({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]})
    assert isinstance(conversation, Conversation)
    assert [message.get("train", True) for message in conversation.messages] == [False, False, False, True]


def test_text_is_a_completion_without_a_prompt() -> None:
    assert one({"text": "once"}) == Text("", "once", "a.jsonl:1")


@pytest.mark.parametrize(("given_input", "question"), [("three", "Count.\n\nthree"), ("", "Count."), (None, "Count.")])
def test_alpaca_appends_the_input_after_a_blank_line(given_input: str | None, question: str) -> None:
    row = {"instruction": "Count.", "input": given_input, "output": "1 2 3"}
    assert one(row) == Conversation(
        ({"role": "user", "content": question}, {"role": "assistant", "content": "1 2 3"}), "a.jsonl:1"
    )


def test_sharegpt_roles_are_mapped_and_a_call_stays_text() -> None:
    names = ["system", "human", "function_call", "observation", "gpt"]
    row = one({"conversations": [{"from": name, "value": name} for name in names]})
    assert isinstance(row, Conversation)
    assert [m["role"] for m in row.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert [m["content"] for m in row.messages] == names


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"messages": [], "prompt": "x", "text": "y"}, "messages"),
        ({"prompt": "x", "completion": "y", "text": "z"}, "prompt_completion"),
        ({"instruction": "x", "output": "y"}, "alpaca"),
        ({"conversations": []}, "sharegpt"),
        ({"messages": None, "text": "y"}, "text"),
    ],
)
def test_detection_takes_the_first_format_that_has_its_keys(row: dict[str, Any], format: str) -> None:
    assert detect(row) == format


def test_an_unknown_row_lists_its_keys_and_every_format() -> None:
    message = error_of({"question": "x", "answer": "y"})
    assert "question, answer" in message and all(f"{name}:" in message for name in FORMATS)


def test_an_unknown_format_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match="chatml"):
        convert([({"text": "x"}, "a.jsonl:1")], "chatml")


def test_a_given_format_is_used_and_not_detected() -> None:
    assert one({"messages": [USER, ASSISTANT], "text": "x"}, "text") == Text("", "x", "a.jsonl:1")
    assert "text missing" in error_of({"messages": [USER, ASSISTANT]}, "text")


def test_rows_of_another_format_are_counted_and_named() -> None:
    rows: list[tuple[dict[str, Any], str]] = [({"text": "x"}, "a.jsonl:1")]
    rows += [({"messages": [USER, ASSISTANT]}, f"a.jsonl:{i}") for i in range(2, 10)]
    with pytest.raises(DataError) as caught:
        convert(rows)
    message = str(caught.value)
    assert "8 of 9 rows" in message and "a.jsonl:6: text missing; its keys are messages" in message
    assert "a.jsonl:7" not in message and "3 more" in message and '{"text": "..."}' in message


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "empty"),
        ("Hi", "list of messages"),
        ([USER], "no assistant message"),
        ([ASSISTANT], "begin with a user message"),
        ([USER, ASSISTANT, ASSISTANT], "both assistant"),
        ([USER, {"role": "system", "content": "x"}, ASSISTANT], "may only come first"),
        ([USER, {"role": "tool", "content": "x"}, ASSISTANT], "follow the assistant's call"),
        ([USER, {"role": "bot", "content": "x"}], "accepted are system, user, assistant, tool"),
        ([USER, {"role": "assistant"}], "content must be a string, found None"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}], "content must be a string"),
        ([USER, {"role": "assistant", "content": " "}], "content is empty"),
        ([USER, {**ASSISTANT, "train": "no"}], "train must be true or false"),
        ([{**USER, "train": True}, ASSISTANT], "is for assistant messages"),
        ([USER, {**ASSISTANT, "weight": 0}], "weight is not a key"),
        ([USER, {"role": "assistant", "tool_calls": ["f()"]}], "tool_calls must be"),
    ],
)
def test_conversations_that_do_not_make_sense_are_refused(messages: Any, reason: str) -> None:
    assert reason in error_of({"messages": messages}, "messages")


def test_a_tool_call_needs_no_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    row = one({"messages": [USER, call, {"role": "tool", "content": "1"}, ASSISTANT]})
    assert isinstance(row, Conversation) and "content" not in row.messages[1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x", "completion": [ASSISTANT]}, "both strings or both lists"),
        ({"prompt": [USER], "completion": [USER]}, "no assistant message"),
        ({"prompt": "x", "completion": " \n"}, "completion is empty"),
        ({"text": ""}, "text is empty"),
        ({"text": 5}, "text must be a string"),
        ({"instruction": "x", "output": ["y"]}, "output must be a string"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "alien"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "accepted are"),
        ({"conversations": [USER, ASSISTANT]}, "under the key messages"),
    ],
)
def test_rows_that_do_not_fit_their_format_are_refused(row: dict[str, Any], reason: str) -> None:
    assert reason in error_of(row)


def test_the_format_the_number_of_rows_and_the_unused_keys_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tunekit"):
        convert([({"text": "x", "id": 1}, "d/a.json[0]"), ({"text": "y"}, "d/a.json[1]")])
    assert caplog.messages == ["d/a.json: 2 rows, format text (detected)", "d/a.json: keys that are not used: id"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "tool_calls", "train"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
KEYS = ["messages", "prompt", "completion", "text", "instruction", "input", "output", "conversations"]


@given(row=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4), format=st.sampled_from(["auto", *FORMATS]))
def test_no_row_crashes_a_format(row: dict[str, Any], format: str) -> None:
    try:
        assert isinstance(one(row, format), Conversation | Text)
    except DataError as error:
        assert "a.jsonl:1" in error.message
