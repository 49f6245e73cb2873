"""Ids and masks against several families of chat templates, on byte-level tokenizers built for it."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.chats import (
    CHANNELS,
    CHATML,
    ENDING,
    GEMMA,
    LLAMA3,
    MARKED,
    MISTRAL,
    SMOLLM,
    THINKING,
    TOOLS,
    TOOLS_TEMPLATE,
    assistant,
    call,
    chat,
    one,
    parts,
    rejection,
    row,
    system,
    tokenizer,
    tool,
    trained,
    trained_runs,
    user,
)
from tunekit.data.encode import encode
from tunekit.data.notes import BEGINS_IN_PROMPT, BEGINS_IN_SPACE
from tunekit.data.render import render_all, serving_examples
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Conversation, Rejected, Text
from tunekit.data.template import ChatTemplate
from tunekit.errors import DataError

ENDLESS = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TALK = chat("hello", "an answer", "one", "two three")
FAMILIES = {
    "chatml": (CHATML, "<|im_end|>", ""),
    "smollm": (SMOLLM, "<|im_end|>", ""),
    "llama3": (LLAMA3, "<|eot_id|>", ""),
    "mistral": (MISTRAL, "</s>", " "),
    "gemma": (GEMMA, "<end_of_turn>", ""),
    "marked": (MARKED, "<|im_end|>", ""),
}
THOUGHTS = chat("hello", "<think>one</think>two", "hello", "<think>one</think>three")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_and_its_terminator_is_trained_and_nothing_else(family: str) -> None:
    template, end, space = FAMILIES[family]
    tok = tokenizer(template)
    tokens = one(TALK, tok)
    assert trained(tokens, tok) == f"{space}an answer{end}{space}two three{end}"
    whole = tok.apply_chat_template(list(TALK.messages), tokenize=True, return_dict=True)
    assert tokens.ids.tolist() == whole["input_ids"]
    assert tokens.ids.dtype == np.int32 and tokens.trained.dtype == np.bool_


def test_the_mask_is_the_one_that_generation_markers_give() -> None:
    tok = tokenizer(MARKED)
    marked = tok.apply_chat_template(list(TALK.messages), return_dict=True, return_assistant_tokens_mask=True)
    assert one(TALK, tok).trained.tolist() == [bool(x) for x in marked["assistant_masks"]]


def test_the_line_break_after_the_terminator_is_not_trained() -> None:
    tok = tokenizer(CHATML)
    tokens = one(TALK, tok)
    assert tok.decode(tokens.ids[-2:]) == "<|im_end|>\n" and tokens.trained[-2:].tolist() == [True, False]


def test_an_eos_that_ends_the_document_and_not_the_turn_is_not_trained() -> None:
    tok = tokenizer(ENDING)
    tokens = one(TALK, tok)
    assert tok.decode(tokens.ids).endswith("two three<|im_end|>\n</s>")
    assert trained(tokens, tok) == "an answer<|im_end|>two three<|im_end|>"


@pytest.mark.parametrize(
    ("loss_on", "given", "expected"),
    [
        ("assistant", TALK, "an answer<|im_end|>two three<|im_end|>"),
        ("last", TALK, "two three<|im_end|>"),
        ("completion", TALK, "two three<|im_end|>"),
        ("assistant", chat("hello", "an answer", "one", "two three", m1=False), "two three<|im_end|>"),
        ("last", chat("hello", "an answer", "one", "two three", m3=False), ""),
        ("completion", chat("hello", "an answer", "one", "two three", m3=False), "an answer<|im_end|>"),
        (
            "completion",
            chat("hello", "one", "two", "three", "hello", "answer", m0=False),
            "one<|im_end|>three<|im_end|>answer<|im_end|>",
        ),
    ],
)
def test_loss_on_and_train_false_choose_the_turns(loss_on: str, given: Conversation, expected: str) -> None:
    for template in (CHATML, MARKED):
        tok = tokenizer(template)
        assert trained(one(given, tok, loss_on=loss_on), tok) == expected


def test_all_trains_every_token_but_the_first_and_turns_marked_false() -> None:
    tok = tokenizer(CHATML)
    tokens = one(TALK, tok, loss_on="all")
    assert tokens.trained.tolist() == [False] + [True] * (len(tokens.ids) - 1)
    tokens = one(chat("hello", "an answer", "one", "two three", m1=False), tok, loss_on="all")
    assert "an answer" not in trained(tokens, tok) and "two three" in trained(tokens, tok)


def test_pad_equal_to_eos_changes_nothing() -> None:
    plain, padded = (
        tokenizer(CHATML, eos_token="<|im_end|>"),
        tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>"),
    )
    assert one(TALK, plain).trained.tolist() == one(TALK, padded).trained.tolist()


def test_a_template_that_writes_bos_gets_no_second_one() -> None:
    tok = tokenizer(LLAMA3, adds="<s>")
    tokens = one(TALK, tok)
    assert tokens.ids.tolist().count(tok.bos_token_id) == 1 and tokens.ids[0] == tok.bos_token_id


OWN = row(system("Mine."), *TALK.messages)


@pytest.mark.parametrize(
    ("mode", "prompt", "given", "expected"),
    [
        ("keep", "Be brief.", TALK, "Be brief."),
        ("keep", "Be brief.", OWN, "Mine."),
        ("keep", None, OWN, "Mine."),
        ("replace", "Be brief.", TALK, "Be brief."),
        ("replace", "Be brief.", OWN, "Be brief."),
        ("drop", None, OWN, None),
        ("drop", "Be brief.", TALK, None),
    ],
)
def test_the_system_message_is_kept_replaced_or_dropped(
    mode: str, prompt: str | None, given: Conversation, expected: str | None
) -> None:
    tok = tokenizer(CHATML)
    tokens = one(given, tok, system=prompt, system_mode=mode)
    begin = f"<|im_start|>system\n{expected}<|im_end|>\n" if expected else ""
    assert tok.decode(tokens.ids).startswith(f"{begin}<|im_start|>user\nhello")
    assert trained(tokens, tok) == "an answer<|im_end|>two three<|im_end|>"


def test_a_template_that_refuses_the_messages_rejects_that_row_alone() -> None:
    message = rejection(TALK, tokenizer(GEMMA), system="Be brief.")
    assert "System role not supported" in message and "data.system" in message
    rows = [chat("hello", "one"), Conversation(({"role": "user"}, assistant("x")), "a.jsonl:2"), TALK]
    good, bad, other = render_all(rows, tokenizer(CHATML))
    assert isinstance(bad, Rejected) and bad.source == "a.jsonl:2"
    assert bad.row == {"messages": ({"role": "user"}, assistant("x"))}
    assert not isinstance(good, Rejected) and not isinstance(other, Rejected)


@pytest.mark.parametrize(
    "expression",
    ["1 // 0", "messages[0] + 1", "messages[0].content.nothing.more", "raise_exception('no')", "f(1)"],
)
def test_whatever_a_template_raises_rejects_the_row(expression: str) -> None:
    template = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ " + expression + " }}" + CHATML
    assert "the chat template refuses the messages" in rejection(TALK, tokenizer(template))


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "no messages"),
        ([user("\ud800"), assistant("y")], "surrogate"),
        ([assistant("y")], "refuses the messages"),
    ],
)
def test_messages_that_are_no_conversation_reject_the_row(messages: list[Any], expected: str) -> None:
    assert expected in rejection(Conversation(tuple(messages), "a.jsonl:1"), tokenizer(TOOLS_TEMPLATE))


def test_messages_that_the_template_leaves_out_reject_the_row() -> None:
    silent = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
    given = row(user("rain?"), assistant("I look."), tool("wet"), assistant("yes"))
    message = rejection(given, tokenizer(silent))
    assert "message 2 (tool)" in message and "leaves out" in message and "'wet'" in message
    # The word stands in the question too, so that it is in the rendering.
    for asked in ("is it wet?", "rain?", "is it wet?"):
        given = row(user(asked), assistant("I look."), tool("wet"), assistant("yes"))
        assert "message 2 (tool)" in rejection(given, tokenizer(silent))


def test_what_a_template_leaves_out_is_found_once_for_each_sequence_of_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    template, rendered = ChatTemplate(tokenizer(silent), "a.jsonl:1"), []
    render = template.render
    monkeypatch.setattr(template, "render", lambda *given, **more: rendered.append(given) or render(*given, **more))
    for i in range(3):
        assert template.left_out([system(f"s{i}"), user("q"), assistant(f"a{i}")], None) == {0}
        assert template.left_out([user(f"q{i}"), assistant("a")], None) == set()
    assert len(rendered) == 2


def test_a_template_that_wants_a_certain_content_is_taken_at_its_word() -> None:
    # No other content than the row's is rendered, so that none can show whether messages are left out.
    picky = "{% if messages[0].content != 'rain?' %}{{ raise_exception('only rain') }}{% endif %}" + CHATML
    assert trained(one(chat("rain?", "no"), tokenizer(picky)), tokenizer(picky)) == "no<|im_end|>"


@pytest.mark.parametrize("depth", [300, 2000])
def test_depth_does_not_crash(depth: int) -> None:
    value: Any = "<|im_end|>" if depth < 1000 else "x"
    for _ in range(depth):
        value = {"a": [value]}
    given = row(user("hi", extra=value), assistant("", tool_calls=[{"function": {"name": "f", "arguments": value}}]))
    assert ("special token" if depth < 1000 else "recursion") in rejection(given, tokenizer(TOOLS_TEMPLATE))


# Tools.


def test_tools_are_rendered_and_what_the_assistant_calls_is_trained_but_not_the_results() -> None:
    tok = tokenizer(TOOLS_TEMPLATE)
    calls = [call("weather", '{"city": "Rome"}'), call("weather", '{"city": "Oslo"}')]
    given = row(
        user("rain?"), assistant("wait", tool_calls=calls), tool("dry"), tool("wet"), assistant("no"), tools=TOOLS
    )
    tokens = one(given, tok)
    assert trained_runs(tokens, tok) == [
        'wait<tool_call>weather{"city": "Rome"}</tool_call><tool_call>weather{"city": "Oslo"}</tool_call><|im_end|>',
        "no<|im_end|>",
    ]
    assert "What the weather is." in tok.decode(tokens.ids)


def test_a_call_without_content_is_trained() -> None:
    tok = tokenizer(TOOLS_TEMPLATE)
    silent = {"role": "assistant", "tool_calls": [call("now", "{}")]}
    assert trained(one(row(user("time?"), silent), tok), tok) == "<tool_call>now{}</tool_call><|im_end|>"


def test_rows_with_other_tools_do_not_mix() -> None:
    tok = tokenizer(TOOLS_TEMPLATE)
    others = TOOLS.replace("weather", "traffic")
    rows = [row(user("q"), assistant("a"), tools=tools) for tools in (TOOLS, None, others, TOOLS)]
    texts = [tok.decode(tokens.ids) for rendered in render_all(rows, tok) for tokens in rendered]  # type: ignore[union-attr]
    assert [("weather" in text, "traffic" in text) for text in texts] == [
        (True, False),
        (False, False),
        (False, True),
        (True, False),
    ]


def test_a_tokenizer_with_a_template_for_tools_uses_it_for_rows_with_tools() -> None:
    tok = tokenizer(None)
    tok.chat_template = {"default": CHATML, "tool_use": TOOLS_TEMPLATE}
    assert "What the weather is." in tok.decode(one(row(user("q"), assistant("a"), tools=TOOLS), tok).ids)
    assert trained(one(TALK, tok), tok) == "an answer<|im_end|>two three<|im_end|>"


def test_tools_that_the_template_ignores_reject_the_row() -> None:
    message = rejection(row(user("q"), assistant("a"), tools=TOOLS), tokenizer(CHATML))
    assert "does not render tools" in message and "data.chat_template" in message


def test_a_template_that_wants_arguments_as_text_gets_them_as_text() -> None:
    # DeepSeek: `+ arguments +`, and content is always there.
    template = TOOLS_TEMPLATE.replace("call.function.arguments | tojson", "call.function.arguments").replace(
        "(m.content or '')", "m.content"
    )
    tok = tokenizer(template)
    silent = {"role": "assistant", "content": None, "tool_calls": [call("weather", '{"city":  "Köln"}')]}
    given = row(user("rain?"), silent, tool("dry"), assistant("no"))
    assert trained(one(given, tok), tok) == '<tool_call>weather{"city": "Köln"}</tool_call><|im_end|>no<|im_end|>'


def test_calls_that_the_template_drops_reject_the_row() -> None:
    calls = [call("weather", '{"city": "Rome"}'), call("weather", '{"city": "Oslo"}')]
    given = row(user("rain?"), assistant("", tool_calls=calls))
    assert "all of its 2 tool calls" in rejection(given, tokenizer(CHATML))
    first = TOOLS_TEMPLATE.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
    assert "all of its 2 tool calls" in rejection(given, tokenizer(first))
    nameless = TOOLS_TEMPLATE.replace("call.function.arguments | tojson", "''")
    message = rejection(row(user("rain?"), assistant("", tool_calls=calls[:1])), tokenizer(nameless))
    assert "does not render its tool_calls as written" in message


# Reasoning.


def test_a_turn_that_the_template_renders_differently_later_is_trained_in_a_row_of_its_own() -> None:
    tok = tokenizer(THINKING)
    notes: Counter[str] = Counter()
    first, whole = parts(THOUGHTS, tok, notes=notes)
    assert first.source == "a.jsonl:1 (message 1)" and whole.source == "a.jsonl:1"
    assert trained(first, tok) == "<think>one</think>two<|im_end|>"
    assert trained(whole, tok) == "<think>one</think>three<|im_end|>"
    assert tok.decode(first.ids) == tok.apply_chat_template(list(THOUGHTS.messages[:2]), tokenize=False)
    assert "two<|im_end|>" in tok.decode(whole.ids) and "<think>one</think>two" not in tok.decode(whole.ids)
    assert list(notes.values()) == [1] and "rows of their own" in next(iter(notes))
    assert trained(one(THOUGHTS, tok, loss_on="last"), tok) == "<think>one</think>three<|im_end|>"


def test_messages_keep_the_numbers_of_the_file_when_the_system_message_changes() -> None:
    tok = tokenizer(THINKING)
    with_system = row(system("Mine."), *THOUGHTS.messages)
    for given, options, number in (
        (THOUGHTS, {"system": "Be brief."}, 1),
        (with_system, {"system_mode": "drop"}, 2),
        (with_system, {"system": "Be brief.", "system_mode": "replace"}, 2),
    ):
        assert parts(given, tok, **options)[0].source == f"a.jsonl:1 (message {number})"


def test_turns_that_stay_the_same_share_the_row_of_the_whole() -> None:
    tok = tokenizer(THINKING)
    given = chat("hello", "one", "hello", "<think>x</think>two", "hello", "three")
    own, whole = parts(given, tok)
    assert own.source.endswith("(message 3)") and trained(own, tok) == "<think>x</think>two<|im_end|>"
    assert trained_runs(whole, tok) == ["one<|im_end|>", "three<|im_end|>"]


def test_reasoning_template_trains_the_turns_as_the_whole_has_them() -> None:
    tok = tokenizer(THINKING)
    notes: Counter[str] = Counter()
    tokens = one(THOUGHTS, tok, reasoning="template", notes=notes)
    assert trained_runs(tokens, tok) == ["two<|im_end|>", "<think>one</think>three<|im_end|>"]
    assert list(notes.values()) == [1] and "without their reasoning" in next(iter(notes))


@pytest.mark.parametrize("reasoned", [False, True])
def test_reasoning_template_finds_the_end_of_a_turn_that_another_token_ends_later(reasoned: bool) -> None:
    tok = tokenizer(CHANNELS)
    more = {"thinking": "hm"} if reasoned else {}
    given = row(user("hello"), assistant("one ", **more), user("again"), assistant("two", **more))
    think = " think\nhm<|im_end|><|im_start|>assistant" if reasoned else ""
    own, whole = parts(given, tok)
    assert trained(own, tok) == f"{think} say\none <|return|>" and trained(whole, tok) == f"{think} say\ntwo<|return|>"
    tokens = one(given, tok, reasoning="template")
    assert trained_runs(tokens, tok) == [" say\none <|im_end|>", f"{think} say\ntwo<|return|>"]


def test_reasoning_template_rejects_a_turn_whose_place_cannot_be_told() -> None:
    # Qwen3.5: the head ends with the tag that the history does not have.
    template = THINKING.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>' }}{% endif %}")
    message = rejection(THOUGHTS, tokenizer(template), reasoning="template")
    assert "message 1 (assistant)" in message and "data.reasoning: keep" in message
    tok = tokenizer(template)
    assert [trained(tokens, tok) for tokens in parts(THOUGHTS, tok)] == [
        "one</think>two<|im_end|>",
        "one</think>three<|im_end|>",
    ]


def test_a_turn_never_reaches_into_the_next_message() -> None:
    # History is quoted and has no terminators but the user's.
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{{ '> ' + m.content.split('</think>')[-1] + '\\n' if m.role == 'assistant' and not loop.last else"
        " m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    tok = tokenizer(template)
    assert "data.reasoning: keep" in rejection(THOUGHTS, tok, reasoning="template")
    assert "data.loss_on: assistant" in rejection(chat("hello", "one", "x", "two", m1=False), tok, loss_on="all")
    assert [trained(tokens, tok) for tokens in parts(THOUGHTS, tok)] == [
        "<think>one</think>two<|im_end|>",
        "<think>one</think>three<|im_end|>",
    ]


@pytest.mark.parametrize("content", ["<think>\none\n</think>\n\ntwo", "one\n</think>\n\ntwo", "</think>two"])
def test_reasoning_is_found_with_its_closing_tag_alone_as_models_write_it_that_are_asked_with_the_other(
    content: str,
) -> None:
    given = chat("q", content, "more", content)
    dropped = one(given, tokenizer(THINKING), reasoning="drop")
    assert trained_runs(dropped, tokenizer(THINKING)) == ["two<|im_end|>", "two<|im_end|>"]
    asked_open = THINKING.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>' }}{% endif %}")
    tag = "" if content.startswith("<think>") else "<think>"
    written = asked_open.replace("'\\n' + c", f"'\\n' + ('{tag}' if m.role == 'assistant' and loop.last else '') + c")
    tok = tokenizer(written)
    assert [trained(tokens, tok) for tokens in parts(given, tok)] == [
        content.removeprefix("<think>") + "<|im_end|>"
    ] * 2


@pytest.mark.parametrize("content", ["It is <think>x</think>", "a tag, <think>, ends with </think>", "<think>endless"])
def test_tags_that_are_no_block_at_the_start_of_an_answer_are_its_words(content: str) -> None:
    assert trained(one(chat("q", content), tokenizer(CHATML), reasoning="drop"), tokenizer(CHATML)) == content + (
        "<|im_end|>"
    )


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_drop_takes_it_out_of_the_data(key: str) -> None:
    tok = tokenizer(THINKING)
    notes: Counter[str] = Counter()
    given = row(user("q"), assistant("<think>\none\n</think>\n\ntwo"), user("q"), assistant("three", **{key: "hm"}))
    tokens = one(given, tok, reasoning="drop", notes=notes)
    assert trained_runs(tokens, tok) == ["two<|im_end|>", "three<|im_end|>"]
    assert list(notes.values()) == [2]
    only = row(user("q"), assistant("<think>one</think>"))
    assert "nothing is left" in rejection(only, tok, reasoning="drop")


def test_a_template_that_always_strips_the_reasoning_rejects_the_row() -> None:
    stripping = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    message = rejection(THOUGHTS, tokenizer(stripping))
    for fix in ("data.reasoning: template", "data.reasoning: drop", "data.chat_template"):
        assert fix in message
    reasoned = row(user("rain?"), assistant("no", reasoning_content="clear sky"))
    assert "does not render its reasoning as written" in rejection(reasoned, tokenizer(CHATML))
    for given in (THOUGHTS, reasoned):
        for reasoning in ("template", "drop"):
            assert "<think>" not in trained(one(given, tokenizer(stripping), reasoning=reasoning), tokenizer(stripping))


def test_a_template_that_drops_part_of_an_answer_rejects_the_row() -> None:
    dropping = CHATML.replace("m.content", "m.content.split('!')[-1]")
    message = rejection(chat("hello", "one!two"), tokenizer(dropping))
    assert "message 1 (assistant)" in message and "does not render its content" in message


def test_a_template_that_asks_otherwise_than_it_renders_rejects_the_row() -> None:
    # DeepSeek-R1: asked for an answer, a tag stands there that no rendered answer begins with.
    asking = CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}")
    message = rejection(TALK, tokenizer(asking))
    assert "message 1 (assistant)" in message and "<think>" in message and "data.reasoning" not in message
    # Qwen3.5 without thinking: without its reasoning the answer would begin as asked.
    without = THINKING.replace("assistant\\n' }}{% endif %}", "assistant\\nSo: ' }}{% endif %}")
    given = chat("hello", "<think>one</think>So: two")
    assert "data.reasoning: drop" in rejection(given, tokenizer(without))


def test_reasoning_in_content_beside_an_empty_block_of_the_template_rejects_the_row() -> None:
    # Qwen3.8 reads reasoning from its key only, and writes an empty block where there is none.
    template = CHATML.replace("+ m.content", "+ ('<think></think>' if m.role == 'assistant' else '') + m.content")
    assert "block of reasoning of its own" in rejection(THOUGHTS, tokenizer(template))
    assert trained(one(chat("q", "one"), tokenizer(template)), tokenizer(template)) == "<think></think>one<|im_end|>"


def test_all_needs_the_place_of_the_turns_that_are_not_trained_and_every_word_of_the_others() -> None:
    tok = tokenizer(THINKING)
    given = chat("hello", "<think>one</think>two", "hello", "three", m1=False)
    tokens = one(given, tok, loss_on="all", reasoning="template")
    assert "two" not in trained(tokens, tok) and "three<|im_end|>" in trained(tokens, tok)
    assert "does not render its reasoning" in rejection(THOUGHTS, tok, loss_on="all")
    assert one(THOUGHTS, tok, loss_on="all", reasoning="template").trained[1:].all()


# Special tokens in the text of messages.


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (chat("hi<|im_end|>\n<|im_start|>assistant\nyes", "no"), "message 0 (user)"),
        (chat("hi", "one<|im_end|>two"), "message 1 (assistant)"),
        (chat("hi", "<think>a<|im_end|></think>two"), "message 1 (assistant)"),
        (row(user("hi"), assistant("x", reasoning="<|im_end|>")), "message 1 (assistant)"),
        (row(user("hi"), assistant("", tool_calls=[call("f", '{"a": ["<|im_end|>"]}')])), "message 1 (assistant)"),
        (row(user("hi"), assistant("x"), tools=json.dumps([{"name": "<|im_end|>"}])), "tools"),
    ],
)
def test_the_text_of_a_special_token_in_a_message_rejects_the_row(given: Conversation, place: str) -> None:
    message = rejection(given, tokenizer(TOOLS_TEMPLATE))
    assert place in message and "'<|im_end|>'" in message and "special token" in message


def test_the_longest_special_token_in_a_message_is_the_one_named() -> None:
    tok = tokenizer(CHATML, special=["<|im_start|>", "<|im", "<|im_end|>"])
    assert "'<|im_end|>'" in rejection(chat("hi <there> <|im_end|>", "x"), tok)


def test_added_tokens_that_are_not_special_and_tags_around_reasoning_may_be_in_messages() -> None:
    tok = tokenizer(CHATML, special=["<|im_start|>", "<|im_end|>", "<think>", "</think>"], ordinary=["<tool_call>"])
    given = chat("what is <tool_call>?", "<think>\nx\n</think>\n\n<tool_call>")
    assert trained(one(given, tok), tok) == "<think>\nx\n</think>\n\n<tool_call><|im_end|>"
    assert "'<think>'" in rejection(chat("what is <think>?", "x"), tok)


def test_raw_text_may_hold_special_tokens() -> None:
    tok = tokenizer(None)
    tokens = one(Text("<|im_start|>user\nhi<|im_end|>", "<|im_start|>x<|im_end|>", "a.jsonl:1"), tok)
    assert trained(tokens, tok) == "<|im_start|>x<|im_end|></s>"


# Terminators, markers, tokenizers.


def test_a_template_without_a_terminator_rejects_the_row() -> None:
    for reasoning in ("keep", "template"):
        message = rejection(TALK, tokenizer(ENDLESS), reasoning=reasoning)
        assert "message 1 (assistant)" in message and "terminator" in message and "data.chat_template" in message


def test_a_tokenizer_without_a_template_raises_for_conversations_only() -> None:
    tok = tokenizer(None)
    with pytest.raises(DataError, match=r"data\.chat_template: path\.jinja"):
        render_all([TALK], tok)
    assert trained(one(Text("one ", "two", "a.jsonl:1"), tok), tok) == "two</s>"


def test_a_template_that_is_no_template_raises() -> None:
    with pytest.raises(DataError, match="not valid Jinja: line 1"):
        render_all([TALK], tokenizer("{% for m in messages %}"))


def test_markers_that_disagree_reject_the_row() -> None:
    beside = MARKED.replace("{% generation %}{{ m.content", "{{ m.content }}{% generation %}{{ ''")
    assert "disagree" in rejection(TALK, tokenizer(beside))
    questions = MARKED.replace("m.role == 'assistant'", "true")
    assert "on the token 'h'" in rejection(chat("hello", "one"), tokenizer(questions))


def test_markers_may_leave_out_the_terminator_and_take_in_the_generation_prompt() -> None:
    without = MARKED.replace(
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}<|im_end|>"
    )
    tok = tokenizer(without)
    assert trained(one(chat("hello", "one"), tok), tok) == "one<|im_end|>"
    wide = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ '<|im_start|>assistant\\n' + m.content + '<|im_end|>\\n' }}{% endgeneration %}"
        "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    tok = tokenizer(wide)
    assert trained(one(TALK, tok), tok) == "an answer<|im_end|>two three<|im_end|>"


def test_a_slow_tokenizer_raises() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="slow tokenizer"):
        render_all([TALK], Slow())  # type: ignore[arg-type]


def asking_with(end: str, template: str = CHATML) -> str:
    """The template with `end` after the role, in the generation prompt too."""
    return template.replace("m.role + '\\n'", f"m.role + '{end}'").replace("assistant\\n", f"assistant{end}")


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize("trim_offsets", [False, True])
def test_a_token_that_begins_in_the_space_of_the_prompt_is_trained_and_noted(template: str, trim_offsets: bool) -> None:
    # The generation prompt ends with a space that merges with the answer's first word: " answer" is one token.
    tok = tokenizer(asking_with(" ", template), trim_offsets=trim_offsets)
    assert len(tok(" answer", add_special_tokens=False)["input_ids"]) == 1
    notes: Counter[str] = Counter()
    assert trained(one(chat("hello", "answer"), tok, notes=notes), tok) == " answer<|im_end|>"
    assert notes == {BEGINS_IN_SPACE: 1} and "should not end in white space" in BEGINS_IN_SPACE
    # A space that stays a token of its own is the prompt's, and what follows it is the answer's.
    assert trained(one(chat("hello", "xyz"), tok, notes=notes), tok) == "xyz<|im_end|>"
    assert notes.total() == 1


def test_a_token_that_begins_in_a_word_of_the_prompt_is_not_trained_and_noted() -> None:
    tok = tokenizer(asking_with(" a"))
    notes: Counter[str] = Counter()
    assert trained(one(chat("hello", "nswer: one"), tok, notes=notes), tok) == ": one<|im_end|>"
    assert notes == {BEGINS_IN_PROMPT: 1} and "not quite the one that was trained" in BEGINS_IN_PROMPT
    message = rejection(chat("hello", "nswer"), tok)
    assert "message 1 (assistant): none of it can be trained but the token that ends it" in message
    assert "' answer' begins in the prompt" in message


def test_line_breaks_that_merge_over_the_border_are_not_trained() -> None:
    # Every prompt of the template ends with its line break, and so will every prompt at serving.
    tok = tokenizer(CHATML)
    assert "ĊĊ" in tok.get_vocab()
    notes: Counter[str] = Counter()
    assert trained(one(chat("hello", "\none"), tok, notes=notes), tok) == "one<|im_end|>"
    assert notes == {BEGINS_IN_PROMPT: 1}
    assert trained(one(chat("hello", "\n"), tok), tok) == "<|im_end|>", "an answer that is blank says nothing"


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_spaces_of_the_answer_are_trained(trim_offsets: bool) -> None:
    tok = tokenizer(CHATML, trim_offsets=trim_offsets)
    assert trained(one(chat("hello", " answer  x "), tok), tok) == " answer  x <|im_end|>"


# Raw text.


@pytest.mark.parametrize("adds", ["", "<s>", "<s></s>"])
@pytest.mark.parametrize(("prompt", "completion"), [("one two", " answer"), ("", "one two"), ("<s>one ", "two</s>")])
def test_raw_text_is_one_tokenisation_with_one_bos_and_one_eos(adds: str, prompt: str, completion: str) -> None:
    tok = tokenizer(None, adds=adds)
    tokens = one(Text(prompt, completion, "a.jsonl:1"), tok)
    ids = tokens.ids.tolist()
    text = (prompt + completion).removeprefix("<s>").removesuffix("</s>")
    bos = "<s>" if adds or prompt.startswith("<s>") else ""
    assert tok.decode(ids) == f"{bos}{text}</s>"
    assert ids.count(tok.eos_token_id) == 1 and ids.count(tok.bos_token_id) == len(bos) // 3
    assert not tokens.trained[0] and tokens.trained[-1]
    if prompt:
        assert trained(tokens, tok) == completion.removesuffix("</s>") + "</s>"
    else:
        assert tokens.trained[1:].all()


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_a_token_over_the_border_is_trained_with_white_space_of_the_prompt_but_not_with_words(
    trim_offsets: bool,
) -> None:
    tok = tokenizer(None, trim_offsets=trim_offsets)
    for prompt, completion, expected, note in (
        ("one ", "answer", " answer</s>", BEGINS_IN_SPACE),
        ("one  ", "answer", " answer</s>", BEGINS_IN_SPACE),
        ("one\n", "\ntwo", "\n\ntwo</s>", BEGINS_IN_SPACE),
        ("one an", "swer: two", ": two</s>", BEGINS_IN_PROMPT),
    ):
        notes: Counter[str] = Counter()
        assert trained(one(Text(prompt, completion, "a.jsonl:1"), tok, notes=notes), tok) == expected
        assert notes == {note: 1}
    assert one(Text("one ", "answer: two", "a.jsonl:1"), tok, loss_on="all").trained[1:].all()


@pytest.mark.parametrize(
    ("prompt", "completion", "adds", "words"),
    [
        ("one an", "swer", "<s>", "' answer' begins in the prompt"),
        ("one an", "swer \n", "<s>", "' answer' begins in the prompt"),
        ("", "x", "", "'x' is the first of the row, with nothing before it\nGive the row a prompt"),
    ],
)
def test_raw_text_of_which_only_the_end_could_be_trained_is_rejected(
    prompt: str, completion: str, adds: str, words: str
) -> None:
    message = rejection(Text(prompt, completion, "a.jsonl:1"), tokenizer(None, adds=adds))
    assert "none of it can be trained but the token that ends it" in message and words in message
    assert one(Text(prompt, completion, "a.jsonl:1"), tokenizer(None, adds=adds), loss_on="all").trained[1:].all()


def test_a_completion_that_is_the_end_itself_is_trained() -> None:
    tok = tokenizer(None)
    assert trained(one(Text("stop", "</s>", "a.jsonl:1"), tok), tok) == "</s>"


def test_raw_text_needs_an_eos() -> None:
    tok = tokenizer(None)
    tok.eos_token = None
    with pytest.raises(DataError, match="eos_token"):
        render_all([Text("", "one", "a.jsonl:1")], tok)


def test_half_a_character_rejects_the_row() -> None:
    assert "surrogate" in rejection(Text("", "a\udc00", "a.jsonl:1"), tokenizer(None))


@pytest.mark.parametrize("batch", [1, 100, 1_000_000])
def test_mixed_rows_come_out_in_order_whatever_is_tokenised_together(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunekit.data.encode.BATCH", batch)
    tok = tokenizer(THINKING)
    rows = [
        Text("", f"t{i}", f"a:{i}") if i % 3 else Conversation(chat("q", f"c{i}").messages, f"a:{i}") for i in range(9)
    ]
    rows[3] = replace(THOUGHTS, source="a:3")
    for i, bad in ((0, chat("q", "<|im_end|>")), (5, Text("", "\udc00", "a:5")), (6, chat("\udc00", "x"))):
        rows[i] = replace(bad, source=f"a:{i}")
    rows.append(replace(chat("q", "<|im_end|>"), source="a:9"))
    out = render_all(rows, tok)
    assert [each.source if isinstance(each, Rejected) else each[-1].source for each in out] == [r.source for r in rows]
    assert [i for i, each in enumerate(out) if isinstance(each, Rejected)] == [0, 5, 6, 9]
    assert [len(each) for each in out if not isinstance(each, Rejected)] == [1, 1, 2, 1, 1, 1]
    rows, out = ([each for i, each in enumerate(both) if i not in (0, 5, 6, 9)] for both in (rows, out))  # type: ignore[misc]
    for given, rendered in zip(rows, out, strict=True):
        assert [tokens.ids.tolist() for tokens in parts(given, tok)] == [tokens.ids.tolist() for tokens in rendered]  # type: ignore[union-attr]


def test_the_tokenizer_gets_little_at_once_and_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunekit.data.encode.BATCH", 100)
    tok, calls = tokenizer(None), list[int]()

    def counting(texts: list[str], **options: Any) -> Any:
        calls.append(sum(map(len, texts)))
        return tok(texts, **options)

    texts = [letter * 40 for letter in "abcdefgh"] + ["i" * 500]
    rest = iter(tuple(texts))
    encoded = encode(counting, rest, add_special_tokens=True)  # type: ignore[arg-type]
    assert next(encoded).text == texts[0] and calls == [120]  # type: ignore[union-attr]
    assert next(rest) == texts.pop(3), "only those that were tokenised are taken"
    assert [each.text for each in encoded] == texts[1:]  # type: ignore[union-attr]
    assert calls == [120, 120, 540], "a text that is larger alone is not cut"


# Dates.

DATED = "{{ strftime_now('%d %b %Y') }}\n" + MARKED


def test_a_template_that_writes_the_date_is_told_the_given_day() -> None:
    tok = tokenizer(DATED)
    macro = tokenizer("{% macro day() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ day() }}\n" + CHATML)
    for each in (tok, macro):
        assert each.decode(one(TALK, each, date="2001-02-03").ids).startswith("03 Feb 2001\n<|im_start|>user\nhello")
        assert each.decode(one(TALK, each).ids).startswith(f"{date.today():%d %b %Y}\n")
    assert trained(one(TALK, tok, date="2001-02-03"), tok) == "an answer<|im_end|>two three<|im_end|>"


@pytest.mark.parametrize(
    "written", ["%d %b %Y", "%A, %-d. %B %y", "%Y-%m-%dT%H:%M:%S", "%j", "%F %T %R", "%D %h %C", "%G-W%V-%u", "day"]
)
def test_the_day_is_written_as_python_writes_it(written: str) -> None:
    tok = tokenizer(f"\n{{% if strftime_now is defined %}}{{{{ strftime_now('{written}') }}}}{{% endif %}}|" + CHATML)
    begin = tok.decode(one(TALK, tok, date="2001-02-03").ids).partition("|")[0]
    assert begin == "\n" + datetime(2001, 2, 3).strftime(written)


def test_a_server_writes_the_date_of_its_own_day() -> None:
    (example,) = serving_examples([TALK], tokenizer(DATED), Rendering(date="2001-02-03"))
    assert example["ids"] == one(TALK, tokenizer(DATED)).ids.tolist()


# Serving.

SERVE = """
import json, sys
from transformers import AutoTokenizer
folder, examples = sys.argv[1], json.load(open(sys.argv[2]))
tokenizer = AutoTokenizer.from_pretrained(folder)
for example in examples:
    ids = tokenizer.apply_chat_template(example["messages"], tools=example["tools"], return_dict=False)
    print(json.dumps(ids == example["ids"]))
assert "tunekit" not in sys.modules
"""


def test_a_process_with_transformers_alone_gets_the_trained_ids_from_the_saved_tokenizer(tmp_path: Path) -> None:
    tok = tokenizer(TOOLS_TEMPLATE)
    rows = [
        TALK,
        row(user("rain?"), assistant("", tool_calls=[call("weather", '{"city":"Rome"}')]), tool("dry"), tools=TOOLS),
        chat("bad", "<|im_end|>"),
    ]
    examples = serving_examples(rows, tok, Rendering(system="Be brief."))
    assert [example["source"] for example in examples] == ["a.jsonl:1", "a.jsonl:1"]
    assert examples[0]["ids"] == one(TALK, tok, system="Be brief.").ids.tolist()
    tok.save_pretrained(tmp_path / "tokenizer")
    changed = [{**examples[0], "messages": examples[0]["messages"][1:]}]
    (tmp_path / "examples.json").write_text(json.dumps(examples + changed))
    run = [sys.executable, "-c", SERVE, str(tmp_path / "tokenizer"), str(tmp_path / "examples.json")]
    output = subprocess.run(run, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert output.split() == ["true", "true", "false"]
    split = serving_examples([THOUGHTS], tokenizer(THINKING))
    assert [len(example["messages"]) for example in split] == [2, 4]
