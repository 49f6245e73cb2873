"""Formats: what is detected, what a row becomes, and what is rejected with its place, reason and fix."""

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from trl.data_utils import extract_prompt

from tunekit.data.formats import FORMATS, Found, convert
from tunekit.data.formats.messages import OTHER_ROLES
from tunekit.data.rows import AnyRow, Conversation, Preference, Prompt, Rejected, Text, Unpaired
from tunekit.errors import DataError, RecipeError

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "Go away"}
SYSTEM = {"role": "system", "content": "Be kind."}
FUNCTION = {"name": "f", "arguments": {"x": 1}}
CALL = {"type": "function", "function": FUNCTION}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "1"}
SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {}}}
HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
PLACE = "a.jsonl:1"


def all_of(rows: list[Any], **options: Any) -> list[AnyRow | Rejected]:
    return list(convert([(row, f"a.jsonl:{i}") for i, row in enumerate(rows, start=1)], **options))


def one(row: dict[str, Any], format: str = "auto", columns: Mapping[str, str] | None = None) -> Any:
    (converted,) = all_of([row], format=format, columns=columns)
    assert converted.source == PLACE
    return converted


def rejected(row: dict[str, Any], format: str = "auto", columns: Mapping[str, str] | None = None) -> Rejected:
    converted = one(row, format, columns)
    assert isinstance(converted, Rejected), converted
    assert converted.row == row and converted.fix
    return converted


def detected(row: dict[str, Any]) -> str:
    found = Found()
    list(convert([(row, PLACE)], found=found))
    assert found.detected
    return found.format


def test_messages_keep_their_marks_and_lose_nulls() -> None:
    marked = {**ASSISTANT, "train": False, "tool_calls": None, "name": "Al", "reasoning_content": "Hm."}
    assert one({"messages": [USER, marked, USER, {**ASSISTANT, "tool_calls": []}]}) == Conversation(
        (USER, {**ASSISTANT, "train": False, "name": "Al", "reasoning_content": "Hm."}, USER, ASSISTANT), PLACE
    )


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert one({"messages": [USER, {"role": "assistant", "content": parts}]}) == Conversation((USER, ASSISTANT), PLACE)


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        FUNCTION,
        {"function": FUNCTION},
        {**CALL, "index": 0},
    ],
)
def test_tool_calls_come_out_in_one_form(call: dict[str, Any]) -> None:
    row = one({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, RESULT, ASSISTANT]})
    assert row.messages == (USER, CALLING, RESULT, ASSISTANT)


def test_arguments_stay_as_they_are_and_ids_are_kept() -> None:
    written = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":  1.0}'}}
    bare = {"type": "function", "function": {"name": "g", "arguments": {}}}
    calling = {"role": "assistant", "tool_calls": [written, {"name": "g"}]}
    row = one({"messages": [USER, calling, {**RESULT, "tool_call_id": "c1", "name": "f"}, ASSISTANT]})
    assert row.messages[1]["tool_calls"] == [written, bare]
    assert row.messages[2] == {**RESULT, "tool_call_id": "c1", "name": "f"}


@pytest.mark.parametrize(
    "tools", [[SCHEMA], [SCHEMA["function"]], json.dumps([SCHEMA]), json.dumps([SCHEMA["function"]])]
)
def test_tools_are_the_json_text_of_schemas_under_function(tools: Any) -> None:
    for row in (
        {"messages": [USER, ASSISTANT]},
        {"conversations": [USER, ASSISTANT]},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER]},
        {"messages": [USER, ASSISTANT], "label": True},
        {"prompt": [USER]},
    ):
        assert json.loads(one({**row, "tools": tools}).tools) == [SCHEMA]
        for nothing in (None, [], "", "[]"):
            assert one({**row, "tools": nothing}).tools is None


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("f(x)", "tools is not JSON"),
        ('[{"name": "f", "name": "g"}]', "stands twice"),
        ({"name": "f"}, "must be a list"),
        ("3", "must be a list"),
        ([{"type": "function"}], "tools[0] has no name"),
        ([SCHEMA, "f"], "tools[1] has no name"),
    ],
)
def test_tools_that_are_no_schemas_are_rejected(tools: Any, reason: str) -> None:
    assert reason in rejected({"messages": [USER, ASSISTANT], "tools": tools}).reason


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "the conversation is empty"),
        ("Hi", "must be a list of messages, found 'Hi'"),
        ([USER, "Hello"], "messages[1]: a message must be an object"),
        ([USER], "no assistant message"),
        ([ASSISTANT], "begin with a user message"),
        ([SYSTEM, ASSISTANT, USER], "begin with a user message"),
        ([USER, ASSISTANT, ASSISTANT], "messages 1 and 2 are both assistant"),
        ([SYSTEM, SYSTEM, USER, ASSISTANT], "message 1 is a system message; it may only come first"),
        ([USER, SYSTEM, ASSISTANT], "may only come first"),
        ([USER, RESULT, ASSISTANT], "follow the assistant's call"),
        ([USER, {"role": "boss", "content": "x"}], "messages[1]: role is 'boss', accepted are system, user, assistant"),
        ([USER, {"role": ["assistant"], "content": "x"}], "role is ['assistant']"),
        ([USER, {"content": "x"}], "messages[1]: there is no role: {'content': 'x'}"),
        ([USER, {"role": None, "content": "x"}], "role is None"),
        ([USER, {"role": "assistant"}], "messages[1] (assistant): content is missing or null"),
        ([USER, {"role": "assistant", "value": "x"}], "there is role and no content: {'role': 'assistant', 'value'"),
        ([{"role": "user", "content": 5}, ASSISTANT], "messages[0] (user): content must be a string, found 5"),
        ([USER, {"role": "assistant", "content": [{"type": "image_url"}]}], "content[0] is of type 'image_url'"),
        ([USER, {"role": "assistant", "content": ["x"]}], "content[0] is 'x'"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "content[0].text must be a string"),
        ([USER, {"role": "assistant", "content": " "}], "content is empty"),
        ([USER, {"role": "assistant", "content": "", "reasoning": "Hm."}], "content is empty"),
        ([USER, {**ASSISTANT, "thinking": 5}], "thinking must be a string"),
        ([{**USER, "reasoning": "Hm."}, ASSISTANT], "of an assistant message"),
        ([USER, {**ASSISTANT, "train": "no"}], "train must be true or false"),
        ([{**USER, "train": True}, ASSISTANT], "is for assistant messages"),
        ([USER, {**ASSISTANT, "weight": 0.5}], "weight must be 0 or 1"),
        ([USER, {**ASSISTANT, "weight": 1, "train": False}], "weight must be 0 or 1, and as train"),
        ([{**USER, "weight": 1}, ASSISTANT], "is for assistant messages"),
        ([USER, {**ASSISTANT, "training": True}], 'training is not a key; write "train": false'),
        ([USER, {**ASSISTANT, "function_call": FUNCTION}], "function_call is not a key"),
        ([USER, {"role": "assistant", "content": None, "function_call": FUNCTION}], "function_call is not a key"),
        ([{**USER, "tool_calls": [CALL]}, ASSISTANT], "only an assistant message"),
        ([USER, {"role": "assistant", "tool_calls": {"a": 1}}], "tool_calls must be a list"),
        ([USER, {"role": "assistant", "tool_calls": ["f()"]}], "must have a name and arguments, found 'f()'"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": "f"}]}], "must have a name"),
        (
            [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x=1"}]}],
            "f are no JSON object: 'x=1'",
        ),
        ([USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}], "no JSON object"),
        ([USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": 1}]}], "no JSON object"),
    ],
)
def test_conversations_that_do_not_make_sense_are_rejected(messages: Any, reason: str) -> None:
    assert reason in rejected({"messages": messages}, "messages").reason


def test_messages_that_are_json_text_are_said_to_be() -> None:
    assert "not its JSON text" in rejected({"messages": json.dumps([USER, ASSISTANT])}, "messages").fix
    assert "not its JSON text" not in rejected({"messages": "Hello"}, "messages").fix


def test_string_prompts_are_raw_text_and_message_prompts_are_not_trained() -> None:
    assert one({"prompt": "2+2=", "completion": "4"}) == Text("2+2=", "4", PLACE)
    conversation = one({"prompt": [USER, ASSISTANT, USER], "completion": [CALLING, RESULT, ASSISTANT], "system": "Be."})
    assert conversation.messages[0] == {"role": "system", "content": "Be.", "train": False}
    assert [message.get("train", True) for message in conversation.messages[1:4]] == [False, False, False]
    assert conversation.messages[4:] == (CALLING, RESULT, ASSISTANT)


def test_text_is_a_completion_without_a_prompt() -> None:
    assert one({"text": "once"}) == Text("", "once", PLACE)


@pytest.mark.parametrize(("given_input", "question"), [("three", "Count.\n\nthree"), ("", "Count."), (None, "Count.")])
def test_alpaca_appends_the_input_after_a_blank_line(given_input: str | None, question: str) -> None:
    row = {"instruction": "Count.", "input": given_input, "output": "1 2 3"}
    asked = ({"role": "user", "content": question}, {"role": "assistant", "content": "1 2 3"})
    assert one(row) == Conversation(asked, PLACE)
    row |= {"system": "Be kind.", "history": [["Hi", "Hello"]]}
    assert one(row) == Conversation((SYSTEM, USER, ASSISTANT, *asked), PLACE)


@pytest.mark.parametrize(("key", "text"), [("from", "value"), ("role", "content")])
def test_the_roles_of_others_are_ours_in_any_case(key: str, text: str) -> None:
    for theirs, role in OTHER_ROLES.items() | {(name, name) for name in ("system", "user", "assistant", "tool")}:
        before = {"system": [], "user": [], "assistant": [USER], "tool": [USER, ASSISTANT]}[role]
        after = {"system": [USER, ASSISTANT], "user": [ASSISTANT], "assistant": [], "tool": [ASSISTANT]}[role]
        for name in (theirs, theirs.title(), theirs.upper()):
            row = one({"messages": [*before, {key: name, text: "x"}, *after]})
            assert row.messages[len(before)] == {"role": role, "content": "x"}, name
    assert {"developer", "bot", "model", "ai", "prompter", "tool_call", "tool_response", "human", "gpt"} <= set(
        OTHER_ROLES
    )


def test_what_tables_fill_in_is_no_value() -> None:
    filled = {"reasoning_content": "", "thinking": "", "tool_calls": [], "name": "", "tool_call_id": ""}
    row = one({"messages": [{**USER, **filled}, {**ASSISTANT, **filled, "weight": None}]})
    assert row.messages == (USER, ASSISTANT)


def test_a_weight_of_0_or_1_says_whether_a_message_is_trained() -> None:
    row = one({"messages": [{**USER, "weight": 0}, {**ASSISTANT, "weight": 0}, USER, {**OTHER, "weight": 1}]})
    assert row.messages == ({**USER, "train": False}, {**ASSISTANT, "train": False}, USER, {**OTHER, "train": True})
    assert one({"messages": [USER, {**ASSISTANT, "weight": 0, "train": False}]}).messages[1]["train"] is False


@pytest.mark.parametrize("nothing", [None, "", {}, "{}"])
def test_a_call_without_arguments_has_none(nothing: Any) -> None:
    calling = {"role": "assistant", "tool_calls": [{"name": "now", "arguments": nothing}]}
    (called,) = one({"messages": [USER, calling, RESULT, ASSISTANT]}).messages[1]["tool_calls"]
    assert called["function"]["arguments"] in ({}, "{}")


def test_sharegpt_roles_are_mapped_and_both_ways_of_writing_turns_are_read() -> None:
    names = ["system", "human", "gpt", "user", "chatgpt", "tool", "observation", "function_response", "assistant"]
    row = one({"conversations": [{"from": name, "value": name} for name in names]})
    roles = ["system", "user", "assistant", "user", "assistant", "tool", "tool", "tool", "assistant"]
    assert [(m["role"], m["content"]) for m in row.messages] == list(zip(roles, names, strict=True))
    marked = {"from": "gpt", "value": "Hello", "train": False, "weight": None}
    row = one({"conversations": [USER, marked], "system": "Be kind."})
    assert row.messages == (SYSTEM, USER, {**ASSISTANT, "train": False})


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (json.dumps(FUNCTION), CALLING),
        (json.dumps([FUNCTION]), CALLING),
        ('{"name": "f"}', {"role": "assistant", "content": '{"name": "f"}'}),
        ("f(1)", {"role": "assistant", "content": "f(1)"}),
        ("[]", {"role": "assistant", "content": "[]"}),
    ],
)
def test_a_function_call_that_is_json_becomes_a_tool_call(written: str, message: dict[str, Any]) -> None:
    for turns in (
        [{"from": "function_call", "value": written}, {"from": "observation", "value": "1"}],
        [{"role": "Tool_Call", "content": written}, {"role": "tool_response", "content": "1"}],
    ):
        assert one({"conversations": [USER, *turns, ASSISTANT]}).messages == (USER, message, RESULT, ASSISTANT)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x", "completion": [ASSISTANT]}, "both strings or both lists"),
        ({"prompt": "x", "completion": 4}, "both strings or both lists of messages, found 'x' and 4"),
        ({"prompt": [USER], "completion": [USER]}, "no assistant message"),
        ({"prompt": [USER, ASSISTANT], "completion": [ASSISTANT]}, "both assistant"),
        ({"prompt": "x", "completion": " \n"}, "completion is empty"),
        ({"prompt": "x", "completion": "y", "tools": [SCHEMA]}, "tools needs messages"),
        ({"prompt": "x", "completion": "y", "system": "z"}, "system needs messages"),
        ({"text": ""}, "text is empty"),
        ({"text": 5}, "text must be a string, found 5"),
        ({"instruction": "x", "output": ["y"]}, "output must be a string"),
        ({"instruction": "x", "output": ""}, "output is empty"),
        ({"instruction": "", "output": "y"}, "instruction is empty"),
        ({"instruction": "x", "input": 3, "output": "y"}, "input must be a string"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "history must be a list of [question, answer]"),
        ({"instruction": "x", "output": "y", "system": 3}, "system must be a string"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "from is 'alien', accepted are system, user"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "accepted are"),
        ({"conversations": [{"from": "human", "text": "x"}]}, "from and no value"),
        ({"conversations": [{"from": "human", "value": None}]}, "conversations[0] (human): content is missing or null"),
        ({"conversations": [SYSTEM, USER, ASSISTANT], "system": "x"}, "may only come first"),
    ],
)
def test_rows_that_do_not_fit_their_format_are_rejected(row: dict[str, Any], reason: str) -> None:
    assert reason in rejected(row).reason


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER]},
        {"messages": [USER], "chosen": ASSISTANT, "rejected": OTHER},
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "Go away"},
        },
        {"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
        {"prompt": "Hi", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},  # ultrafeedback
        {"prompt": [USER], "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
        {"prompt": None, "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER], "margin": None},
    ],
)
def test_a_pair_of_messages_has_its_prompt_under_a_key_or_shared(row: dict[str, Any]) -> None:
    assert one(row) == Preference((USER,), (ASSISTANT,), (OTHER,), PLACE)
    asked = one({**row, "system": "Be kind.", "margin": 2, "tools": [SCHEMA]})
    assert asked == Preference((SYSTEM, USER), (ASSISTANT,), (OTHER,), PLACE, json.dumps([SCHEMA]), 2.0)


def test_a_pair_of_answers_may_call_tools() -> None:
    row = one({"prompt": [USER], "chosen": [CALLING, RESULT, ASSISTANT], "rejected": [OTHER]})
    assert row.chosen == (CALLING, RESULT, ASSISTANT)
    shared = [USER, CALLING, RESULT]
    row = one({"chosen": [*shared, ASSISTANT], "rejected": [*shared, OTHER]})
    assert (row.prompt, row.chosen, row.rejected) == (tuple(shared), (ASSISTANT,), (OTHER,))


def test_a_pair_of_strings_is_raw_text() -> None:
    assert one({"prompt": "2+2=", "chosen": "4", "rejected": "5", "margin": 0.5}) == Preference(
        "2+2=", "4", "5", PLACE, margin=0.5
    )
    assert one({"chosen": "The sky is blue", "rejected": "The sky is bright"}) == Preference(
        "The sky is", " blue", " bright", PLACE
    )
    assert one({"chosen": "positive", "rejected": "possible"}) == Preference("", "positive", "possible", PLACE)
    assert one({"chosen": "A:\ncats", "rejected": "A:\ncat"}) == Preference("A:\n", "cats", "cat", PLACE)
    assert one({"chosen": "Sum: 4", "rejected": "Sum: 5"}) == Preference("Sum:", " 4", " 5", PLACE)
    assert one({"chosen": "yes", "rejected": "no"}) == Preference("", "yes", "no", PLACE)
    asked = {"question": "Is it?", "chosen": "Is it? Yes", "rejected": "Is it? No"}
    assert one(asked) == Preference("Is it?", " Yes", " No", PLACE)


@given(st.text(" ab", max_size=6), st.text(" ab", min_size=1, max_size=4), st.text(" ab", min_size=1, max_size=4))
def test_a_shared_prompt_ends_where_trl_ends_it_or_before_the_word_in_which_it_does(
    shared: str, one_end: str, other_end: str
) -> None:
    chosen, rejected_text = shared + "x" + one_end, shared + "y" + other_end
    assume(shared or not chosen.endswith(" "))  # there TRL looks at the last character of the answer
    prompt = extract_prompt({"chosen": chosen, "rejected": rejected_text})["prompt"]
    if not shared.endswith(" "):
        prompt = prompt.rpartition(" ")[0]
    row = one({"chosen": chosen, "rejected": rejected_text})
    assert row == Preference(prompt, chosen[len(prompt) :], rejected_text[len(prompt) :], PLACE)


@given(st.lists(st.sampled_from([(USER, ASSISTANT), (USER, OTHER), (USER, CALLING, RESULT, OTHER)]), max_size=3))
def test_shared_messages_end_where_trl_ends_them(exchanges: list[tuple[dict[str, Any], ...]]) -> None:
    shared = [message for exchange in exchanges for message in exchange] + [USER]
    row = {"chosen": [*shared, ASSISTANT], "rejected": [*shared, OTHER]}
    converted = one(row)
    assert {key: list(getattr(converted, key)) for key in ("prompt", "chosen", "rejected")} == extract_prompt(row)


def test_a_transcript_becomes_messages() -> None:
    row = one({"chosen": f"{HH} Because.\n", "rejected": f"{HH} No.\n\nNo!"})
    said = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]
    assert row == Preference(
        tuple({"role": role, "content": text} for role, text in said),
        ({"role": "assistant", "content": "Because."},),
        ({"role": "assistant", "content": "No.\n\nNo!"},),
        PLACE,
    )


def test_a_verdict_is_on_the_last_message_or_the_completion() -> None:
    answered = Unpaired((SYSTEM, USER), (ASSISTANT,), False, PLACE)
    assert one({"messages": [SYSTEM, USER, ASSISTANT], "label": False}) == answered
    assert one({"conversations": [USER, ASSISTANT], "system": "Be kind.", "label": False}) == answered
    assert one({"prompt": [SYSTEM, USER], "completion": [ASSISTANT], "label": False}) == answered
    assert one({"prompt": "2+2=", "completion": "4", "label": True}) == Unpaired("2+2=", "4", True, PLACE)


def test_a_prompt_is_a_string_or_messages_and_may_have_an_answer() -> None:
    assert one({"prompt": "2+2=", "answer": "4"}) == Prompt("2+2=", PLACE, answer="4")
    assert one({"prompt": [USER, CALLING, RESULT], "system": "Be kind.", "tools": [SCHEMA]}) == Prompt(
        (SYSTEM, USER, CALLING, RESULT), PLACE, json.dumps([SCHEMA])
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x", "chosen": "y", "rejected": "y"}, "chosen and rejected are equal"),
        ({"prompt": [USER], "chosen": ASSISTANT, "rejected": [ASSISTANT]}, "chosen and rejected are equal"),
        ({"prompt": "x", "chosen": "y", "rejected": " "}, "rejected is empty"),
        ({"prompt": "x", "chosen": "y", "rejected": 5}, "rejected must be a list of messages, found 5"),
        ({"prompt": "x", "chosen": "y", "rejected": [OTHER]}, "not one of each"),
        ({"prompt": [USER], "chosen": "y", "rejected": "z"}, "prompt must be a string"),
        ({"prompt": "y", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, "do not begin with it: 'y'"),
        ({"prompt": "Hi", "chosen": [ASSISTANT], "rejected": [OTHER]}, "do not begin with it"),
        ({"messages": "Hi", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, "messages must be a list"),
        ({"conversations": [USER], "chosen": "y", "rejected": "z"}, "conversations is a chat"),
        ({"chosen": [ASSISTANT], "rejected": [OTHER]}, "share no message"),
        ({"chosen": [USER, ASSISTANT, USER], "rejected": [USER, OTHER]}, "found the roles assistant, user"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT, USER]}, "ends with a message of the assistant"),
        ({"prompt": [USER], "chosen": [], "rejected": [OTHER]}, "chosen is empty"),
        ({"prompt": [USER], "chosen": [USER, ASSISTANT], "rejected": [OTHER]}, "found the roles user, assistant"),
        ({"prompt": [ASSISTANT], "chosen": ASSISTANT, "rejected": OTHER}, "prompt has no user message"),
        ({"prompt": [USER], "chosen": [ASSISTANT, ASSISTANT], "rejected": OTHER}, "both assistant"),
        ({"prompt": "x", "chosen": "y", "rejected": "z", "margin": "2"}, "margin must be a finite number"),
        ({"prompt": "x", "chosen": "y", "rejected": "z", "margin": True}, "margin must be a finite number"),
        ({"prompt": "x", "chosen": "y", "rejected": "z", "margin": 10**400}, "margin must be a finite number"),
        ({"prompt": "x", "chosen": "y", "rejected": "z", "tools": [SCHEMA]}, "tools needs messages"),
        ({"chosen": "So it is.", "rejected": "So"}, "rejected is empty after what both answers begin with"),
        ({"chosen": "So it is.", "rejected": "So not.", "question": "Is it?"}, "the column question looks like one"),
        ({"chosen": HH + " a", "rejected": HH + " a"}, "chosen and rejected are equal"),
        ({"chosen": HH + " a", "rejected": HH}, "rejected: turn 3 (Assistant) is empty"),
        ({"chosen": HH + " a\n\nHuman: b", "rejected": HH + " b"}, "chosen ends with a turn of Human"),
        ({"chosen": HH + " a\n\nAssistant: b", "rejected": HH + " b"}, "turns 3 and 4 are both by Assistant"),
        ({"chosen": HH + " a", "rejected": "\n\nHuman: x\n\nAssistant: y"}, "differ before their last turn"),
        ({"prompt": "x", "completion": "y", "label": "true"}, "label must be true or false, found 'true'"),
        ({"prompt": "x", "completion": "y", "label": 1}, "label must be true or false, found 1"),
        ({"prompt": "x", "completion": "", "label": True}, "completion is empty"),
        ({"messages": [USER, ASSISTANT], "label": "False"}, "label must be true or false"),
        ({"messages": [USER], "label": True}, "has no user message"),
        ({"messages": [USER, USER], "label": True}, "the answer must be one answer of the assistant"),
        ({"messages": [], "label": True}, "has no user message"),
        ({"prompt": [USER], "completion": [ASSISTANT, USER, ASSISTANT], "label": True}, "found the roles"),
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": 5}, "prompt must be a string, found 5"),
        ({"prompt": []}, "prompt has no user message"),
        ({"prompt": [USER, ASSISTANT]}, "ends with a message of the assistant"),
        ({"prompt": [USER, SYSTEM, USER]}, "may only come first"),
        ({"prompt": "x", "answer": 4}, "answer must be a string"),
        ({"prompt": "x", "tools": [SCHEMA]}, "tools needs messages"),
    ],
)
def test_pairs_verdicts_and_prompts_that_do_not_fit_are_rejected(row: dict[str, Any], reason: str) -> None:
    assert reason in rejected(row).reason


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"messages": [], "prompt": "x", "text": "y"}, "messages"),
        ({"prompt": "x", "completion": "y", "text": "z"}, "prompt_completion"),
        ({"instruction": "x", "output": "y", "text": "z"}, "alpaca"),
        ({"conversations": []}, "sharegpt"),
        ({"messages": None, "text": "y"}, "text"),
        ({"text": "x", "url": "u", "id": 1, "source": "s", "timestamp": 2, "meta": {"code": 1}, "title": "t"}, "text"),
        ({"text": "x", "label": None, "summary": None}, "text"),
        ({"prompt": "x", "id": 1, "meta": {}, "output": None}, "prompt"),
        ({"prompt": "x", "label": "safe"}, "prompt"),
        ({"prompt": "x", "label": True}, "prompt"),
        ({"prompt": "x", "completion": "y", "label": True}, "unpaired"),
        ({"prompt": "x", "completion": "y", "label": "True"}, "unpaired"),
        ({"prompt": "x", "completion": "y", "label": "joy"}, "prompt_completion"),
        ({"prompt": "x", "completion": "y", "label": 7}, "prompt_completion"),
        ({"messages": [], "label": False}, "unpaired"),
        ({"conversations": [], "label": False}, "unpaired"),
        ({"messages": [], "label": "spam"}, "messages"),
        ({"prompt": "x", "chosen": "y", "rejected": "z", "messages": []}, "preference"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, "preference"),
        ({"chosen": HH, "rejected": HH}, "hh_rlhf"),
        ({"chosen": HH, "rejected": "no"}, "preference"),
        ({"prompt": "x", "chosen": None, "rejected": None}, "prompt"),
        ({"prompt": "x", "answer": "y"}, "prompt"),
    ],
)
def test_detection_takes_the_first_format_that_has_its_keys(row: dict[str, Any], format: str) -> None:
    assert detected(row) == format


@pytest.mark.parametrize(
    ("doubtful", "clear", "format"),
    [
        ({"prompt": "x", "completion": None}, {"prompt": "x", "completion": "y"}, "prompt_completion"),
        ({"instruction": "x", "output": None, "text": "t"}, {"instruction": "x", "output": "y", "text": "t"}, "alpaca"),
        (
            {"prompt": "x", "completion": "y", "label": None},
            {"prompt": "x", "completion": "y", "label": True},
            "unpaired",
        ),
        (
            {"prompt": "x", "chosen": None, "rejected": "z"},
            {"prompt": "x", "chosen": "y", "rejected": "z"},
            "preference",
        ),
        ({"chosen": HH + "a", "rejected": None}, {"chosen": HH + "a", "rejected": HH + "b"}, "hh_rlhf"),
        ({"version": 1}, {"text": "y"}, "text"),
    ],
)
def test_a_row_in_doubt_leaves_the_format_to_the_next(doubtful: Any, clear: Any, format: str) -> None:
    found = Found()
    first, second = all_of([doubtful, clear], found=found)
    assert found.format == format
    assert isinstance(first, Rejected) and not isinstance(second, Rejected)
    assert "is null" in first.reason or "is missing" in first.reason


def test_a_column_that_is_null_in_every_way_casts_no_doubt() -> None:
    found = Found()
    all_of([{"messages": None, "text": "x"}, {"messages": [USER, ASSISTANT], "text": None}], found=found)
    assert found.format == "text"


def test_where_no_row_is_clear_the_format_that_rows_have_whole_is_taken() -> None:
    found = Found()
    rows = all_of([{"prompt": "x", "completion": None}] * 30, found=found)
    assert found.format == "prompt" and rows[29] == Prompt("x", "a.jsonl:30")


def test_an_unknown_row_lists_its_keys_and_every_format() -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1: a row with the keys title, body") as caught:
        all_of([{"title": "x", "body": "y"}] * 30)
    assert all(f"{name}: " in caught.value.fix for name in FORMATS) and "columns: {text: " in caught.value.fix
    with pytest.raises(DataError, match=r"the keys prompt, completion \(null: prompt\) is in"):
        all_of([{"prompt": None, "completion": "y"}] * 30)
    with pytest.raises(DataError, match=r"\(none\)"):
        one({})


# Rows that are in no format, the columns that are advised first, and the question and answer that come of them.
ADVISED: list[tuple[dict[str, Any], str, tuple[str, str]]] = [
    ({"id": 1, "question": "x", "answer": "y"}, "{instruction: question, output: answer}", ("x", "y")),
    ({"Query": "x", "Response": 4.5}, "{instruction: Query, output: Response}", ("x", "4.5")),
    ({"input": "x", "target": "y"}, "{instruction: input, output: target}", ("x", "y")),
    ({"text": "x", "code": "y", "task_id": 1}, "{instruction: text, output: code}", ("x", "y")),
    ({"text": "x", "label": 1}, "{instruction: text, output: label}", ("x", "1")),
    ({"text": "x", "category": True}, '{instruction: text, output: "{category}"}', ("x", "true")),
    ({"prompt": "x", "response": "y"}, "{instruction: prompt, output: response}", ("x", "y")),
    ({"problem": "x", "solution": "So 3.", "answer": "3"}, "{instruction: problem, output: solution}", ("x", "So 3.")),
    ({"problem": "x", "solution": "3", "answer": "So 3."}, "{instruction: problem, output: answer}", ("x", "So 3.")),
    (
        {"instruction": "x", "context": "c", "response": "y", "category": "z"},
        "{instruction: instruction, input: context, output: response}",
        ("x\n\nc", "y"),
    ),
    (
        {"Body": "c", "Question": "x", "Answer": "y"},
        "{instruction: Question, input: Body, output: Answer}",
        ("x\n\nc", "y"),
    ),
    ({"conversation": [USER, ASSISTANT], "model": "m"}, "{messages: conversation}", ("Hi", "Hello")),
    (
        {"items": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": 1},
        "{messages: items}",
        ("Hi", "Hello"),
    ),
    ({"data, raw": [USER, ASSISTANT]}, '{messages: "data, raw"}', ("Hi", "Hello")),
]


def advice_on(row: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        one(row)
    return caught.value.fix.partition("Accepted")[0]


def columns_in(advice: str) -> list[dict[str, str]]:
    """The `columns` that the advice says to write, read as YAML."""
    return [YAML(typ="safe").load(found) for found in re.findall(r'columns: (\{(?:[^{}"]|"[^"]*")*\})', advice)]


@pytest.mark.parametrize(("row", "columns", "said"), ADVISED)
def test_the_columns_to_write_are_said_where_the_keys_tell_and_they_work(
    row: dict[str, Any], columns: str, said: tuple[str, str]
) -> None:
    advice = advice_on(row)
    assert f"columns: {columns}" in advice
    first, *others = columns_in(advice)
    assert tuple(message["content"] for message in one(row, columns=first).messages) == said
    for more in others:
        converted = one(row, columns=more)
        answer = converted.completion if isinstance(converted, Text) else converted.answer
        assert (converted.prompt, answer) == (said[0].replace("\n\n", " "), said[1])


def test_a_second_answer_is_mentioned() -> None:
    assert "solution (or answer) look like" in advice_on({"problem": "x", "solution": "So 3.", "answer": "3"})


def test_rows_that_hold_more_than_text_or_prompt_can_be_taken_by_it_alone() -> None:
    for key, more in (("text", {"code": "x"}), ("prompt", {"response": "x"}), ("prompt", {"solution": 3})):
        row = {key: "Ask", **more}
        assert f"format: {key} takes the rows as they are" in advice_on(row)
        assert not isinstance(one(row, format=key), Rejected)
    messages = {"prompt": [USER, ASSISTANT, USER], "solution": "4"}
    assert columns_in(advice_on(messages)) == [{"answer": "solution"}]
    assert one(messages, columns={"answer": "solution"}) == Prompt((USER, ASSISTANT, USER), PLACE, answer="4")


def test_lines_that_look_like_rows_for_a_header_are_said_to_be() -> None:
    assert "put a line with the names of the columns" in advice_on({"0": "0", "with pale blue berries": "1"})


@pytest.mark.parametrize("system", ["Be kind.", ""])
def test_a_pair_with_a_question_and_a_system_prompt_gets_advice_that_works(system: str) -> None:
    for key in ("question", "prompt"):
        row = {"system": system, key: "Why?", "chosen": "So.", "rejected": "No."}
        converted = one(row)
        if isinstance(converted, Rejected):
            (columns,) = columns_in(converted.fix)
            converted = one(row, columns=columns)
        assert converted == Preference(
            "Why?" if key == "prompt" and not system else f"{system} Why?", "So.", "No.", PLACE
        )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "x", "chosen": "y", "rejected": "y"},
        {"chosen": HH + " a", "rejected": HH + " a"},
        {"prompt": "x", "completion": " "},
        {"text": " "},
        {"instruction": "x", "output": ""},
        {"messages": [USER, {"role": "assistant", "content": ""}]},
        {"messages": [USER, ASSISTANT, ASSISTANT]},
        {"messages": [USER]},
        {"messages": [USER, SYSTEM, ASSISTANT]},
        {"chosen": HH + " a", "rejected": HH},
    ],
)
def test_a_reason_that_is_not_the_shape_of_the_row_is_not_followed_by_a_shape(row: dict[str, Any]) -> None:
    assert "A row of the format" not in rejected(row).fix
    assert "A row of the format" in rejected({"prompt": "x", "completion": 5}).fix


def test_an_unknown_format_is_a_recipe_error_at_once() -> None:
    with pytest.raises(RecipeError, match=r"chatml.*") as caught:
        convert([], format="chatml")
    assert "sharegpt" in caught.value.fix
    with pytest.raises(RecipeError, match="did you mean messages"):
        convert([], format="message")


def test_a_given_format_is_used_and_not_detected() -> None:
    found = Found()
    rows = all_of([{"messages": [USER], "text": "x"}, {"messages": [USER]}], format="text", found=found)
    assert rows[0] == Text("", "x", "a.jsonl:1") and (found.format, found.detected) == ("text", False)
    assert isinstance(rows[1], Rejected) and rows[1].reason == "text is missing; its keys are messages"


def test_rows_of_another_format_are_rejected_wherever_they_come() -> None:
    rows = all_of([{"text": "x"}] * 10_000 + [{"messages": [USER, ASSISTANT]}])
    assert sum(isinstance(row, Text) for row in rows) == 10_000
    last = rows[-1]
    assert isinstance(last, Rejected) and last.source == "a.jsonl:10001" and '{"text": "..."}' in last.fix


def test_one_row_comes_out_for_each_item_in_order_and_as_it_is_asked_for() -> None:
    bad = Rejected("a.jsonl:1", "not JSON", "{")
    asked = []

    def items() -> Any:
        for item in (
            bad,
            ({"text": None}, "a.jsonl:2"),
            bad,
            ({"text": "x"}, "a.jsonl:4"),
            ({"text": "y"}, "a.jsonl:5"),
        ):
            asked.append(item)
            yield item

    rows = convert(items())
    assert next(rows) is bad and len(asked) == 1
    second, third, fourth = next(rows), next(rows), next(rows)
    assert isinstance(second, Rejected) and second.source == "a.jsonl:2" and third is bad
    assert fourth == Text("", "x", "a.jsonl:4") and len(asked) == 4
    assert [row.source for row in rows] == ["a.jsonl:5"]


def test_nothing_but_rejected_items_is_no_error() -> None:
    bad, found = Rejected("a.jsonl:1", "not JSON", "{"), Found()
    assert list(convert([bad, bad], found=found)) == [bad, bad] and found.format == ""


def test_the_keys_that_are_not_used_are_collected() -> None:
    found = Found()
    all_of([{"text": "x", "id": 1, "empty": None}, {"text": "y", "more": 2}], found=found)
    assert found.unused == {"id", "more"}
    found = Found()
    all_of([{"q": "x", "a": "y", "id": 1}], columns={"prompt": "q", "completion": "{a}!"}, found=found)
    assert found.unused == {"id"}
    found = Found()
    all_of([{"a": {"b": "x"}, "a.b": "y", "c": {"d": "z"}}], columns={"prompt": "a.b", "answer": "c.d"}, found=found)
    assert found.unused == {"a"}


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        ({"prompt": "q", "completion": "a"}, {"q": "x", "a": 51.0}, Text("x", "51.0", PLACE)),
        ({"prompt": "{B} {Q}", "completion": " {a}"}, {"B": "x.", "Q": "y?", "a": 3}, Text("x. y?", " 3", PLACE)),
        ({"prompt": "{{{q}}}", "completion": "a"}, {"q": "x", "a": "y"}, Text("{x}", "y", PLACE)),
        ({"text": "{answers.text.0}"}, {"answers": {"text": ["x", "z"]}}, Text("", "x", PLACE)),
        ({"text": "a.b"}, {"a.b": "x", "a": {"b": "y"}}, Text("", "x", PLACE)),
        ({"text": "a.b.c"}, {"a": {"b.c": "x"}}, Text("", "x", PLACE)),
        ({"text": "{options} {ok}"}, {"options": ["A", 2], "ok": True}, Text("", "A\n2 true", PLACE)),
        ({"prompt": "text", "completion": "label"}, {"text": "x", "label": "y"}, Text("x", "y", PLACE)),
        ({"completion": "answer"}, {"prompt": "x", "answer": "y"}, Text("x", "y", PLACE)),
        ({"completion": "{completion}."}, {"prompt": "x", "completion": "y"}, Text("x", "y.", PLACE)),
        ({"messages": "chat.0"}, {"chat": [[USER, ASSISTANT]]}, Conversation((USER, ASSISTANT), PLACE)),
        ({"label": "good"}, {"prompt": "x", "completion": "y", "good": True}, Unpaired("x", "y", True, PLACE)),
        ({"margin": "m"}, {"chosen": "x", "rejected": "y", "m": 1}, Preference("", "x", "y", PLACE, margin=1.0)),
    ],
)
def test_columns_fill_our_keys(columns: dict[str, str], row: dict[str, Any], expected: AnyRow) -> None:
    assert one(row, columns=columns) == expected


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prmopt": "q"}, "did you mean prompt?"),
        ({"q": "prompt"}, "the other way round it would be prompt: q"),
        ({"text": "{q"}, "a brace without its other one"),
        ({"text": "q}"}, "a brace without its other one"),
        ({"text": "{}"}, "a brace without its other one"),
    ],
)
def test_columns_that_are_no_mapping_are_a_recipe_error_at_once(columns: dict[str, str], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        convert([], columns=columns)
    assert words in str(caught.value)


def test_a_column_that_no_row_has_is_a_recipe_error_and_one_that_a_row_lacks_is_not() -> None:
    for rows in ([{"question": "x"}], [{"question": "x"}] * 30):
        for format in ("auto", "text"):
            with pytest.raises(RecipeError) as caught:
                all_of(rows, columns={"text": "qustion"}, format=format)
            assert "did you mean question?" in caught.value.message and "It has: question." in caught.value.fix
    rows = all_of([{"id": 1}, {"question": "x"}, *[{"id": 1}] * 30, {"question": "y"}], columns={"text": "question"})
    assert isinstance(rows[0], Rejected) and "the row has no question" in rows[0].reason
    assert rows[1] == Text("", "x", "a.jsonl:2") and rows[32] == Text("", "y", "a.jsonl:33")
    assert sum(isinstance(row, Rejected) for row in rows) == 31


def test_a_column_that_the_first_rows_lack_ends_the_reading_there() -> None:
    rows = iter([({"id": 1}, f"a.jsonl:{i}") for i in range(1, 1000)])
    with pytest.raises(RecipeError, match=r"no question \(a\.jsonl:1\)"):
        list(convert(rows, columns={"text": "question"}))
    assert len(list(rows)) > 900


@pytest.mark.parametrize(
    ("value", "column", "reason"),
    [
        ({"text": []}, "a.text.0", "there is no 0 in a list of 0"),
        ({"text": "x"}, "a.text.0", "there is no 0 in 'x'"),
        (None, "{a}", "the column a is None, and only texts and numbers"),
        ([], "{a}", "the column a is []"),
        ([{"b": 1}], "{a}", "only texts and numbers"),
        (None, "a", "text is null"),
        (True, "a", "text must be a string, found True"),
    ],
)
def test_a_column_that_does_not_fit_a_key_is_rejected(value: Any, column: str, reason: str) -> None:
    rows = all_of([{"a": value}, {"a": "x"}], columns={"text": column}, format="text")
    assert isinstance(rows[0], Rejected) and reason in rows[0].reason and rows[0].source == PLACE


KEYS = sorted({key for each in FORMATS.values() for key in each.keys})
INNER = ["role", "content", "from", "value", "tool_calls", "train", "function", "name", "arguments", "type", "text"]
WORDS = ["user", "assistant", "tool", "system", "gpt", "human", "function_call", "text", "{}", "[]", HH, HH + " x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=4),
    max_leaves=10,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(WORDS[:4]), "content": st.text()}, optional={"tool_calls": JSON})
)


@settings(max_examples=600, deadline=None)
@given(
    row=st.dictionaries(st.sampled_from(KEYS), JSON | MESSAGES, max_size=5),
    format=st.sampled_from(["auto", *FORMATS]),
    columns=st.none() | st.dictionaries(st.sampled_from(KEYS), st.sampled_from([*KEYS, "{prompt}{text}", "text.0"])),
)
def test_no_row_crashes_a_format(row: dict[str, Any], format: str, columns: dict[str, str] | None) -> None:
    try:
        converted = one(row, format, columns)
    except RecipeError as error:
        assert columns and "columns" in error.message
    except DataError as error:
        assert format == "auto" and PLACE in error.message
    else:
        assert converted.source == PLACE
        if isinstance(converted, Rejected):
            assert converted.reason and converted.fix


@pytest.mark.parametrize("format", FORMATS)
def test_no_row_that_is_nested_deeply_crashes_a_format(format: str) -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    for key in KEYS:
        for value in (
            deep,
            [deep],
            [{"role": "user", "content": deep}],
            [{**ASSISTANT, "tool_calls": [{"name": "f", "arguments": deep}]}],
        ):
            row = dict.fromkeys(KEYS, value) | {key: deep}
            assert isinstance(one(row, format), Rejected)


def test_messages_that_are_too_deep_to_be_compared_are_rejected() -> None:
    def answer() -> dict[str, Any]:
        deep: Any = "x"
        for _ in range(100_000):
            deep = [deep]
        return {**ASSISTANT, "more": deep}

    converted = one({"prompt": [USER], "chosen": [answer()], "rejected": [answer()]})
    assert isinstance(converted, Rejected) and converted.reason == "nested too deeply"
