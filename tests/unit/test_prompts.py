"""The prompts of training rows: what a model is asked in an evaluation is what it was trained to answer."""

from importlib.resources import files
from typing import Any

import pytest

from tests.chats import (
    CHATML,
    SMOLLM,
    THINKING,
    TOOLS,
    TOOLS_TEMPLATE,
    assistant,
    call,
    chat,
    one,
    row,
    system,
    tokenizer,
    tool,
    user,
)
from tunekit.data.pairs import render_prompts
from tunekit.data.prompts import last_turn, prompts_of
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Conversation, Prompt, Text, Tokens

CALLS = row(
    user("rain?"),
    assistant("", tool_calls=[call("weather", '{"city": "Rome"}')]),
    tool("dry"),
    assistant("no"),
    tools=TOOLS,
)
OWN = row(
    system("Mine."), user("hello"), assistant("<think>x</think>one"), user("again"), assistant("<think>y</think>two")
)
QWEN3 = (files("trl") / "chat_templates" / "qwen3.jinja").read_text()


def test_rows_with_a_prompt_and_an_answer_give_both() -> None:
    rows = [
        chat("hello", "one", "again", "two"),
        Text("one ", "two", "a.jsonl:2"),
        Text("", "trained whole", "a.jsonl:3"),
        Conversation((assistant("first"),), "a.jsonl:4"),
        Conversation((), "a.jsonl:5"),
        row(user("rain?"), assistant("", tool_calls=[call("weather", "{}")])),
    ]
    found = prompts_of(rows)
    assert found == [
        Prompt((user("hello"), assistant("one"), user("again")), "a.jsonl:1", answer="two"),
        Prompt("one ", "a.jsonl:2", answer="two"),
    ]
    assert [last_turn(prompt) for prompt in found] == ["again", "one "]
    assert last_turn(Prompt(({"role": "user"},), "a.jsonl:1")) == ""


def test_what_comes_after_the_last_answer_is_left_out() -> None:
    (prompt,) = prompts_of([chat("hello", "one", "again")])
    assert prompt.prompt == (user("hello"),) and prompt.answer == "one"


def test_reasoning_that_is_dropped_is_in_neither_prompt_nor_answer() -> None:
    (kept,) = prompts_of([OWN])
    assert kept.answer == "<think>y</think>two" and "<think>" in kept.prompt[2]["content"]  # type: ignore[index]
    (dropped,) = prompts_of([OWN], Rendering(reasoning="drop"))
    assert dropped.answer == "two" and "<think>" not in str(dropped.prompt)


ASKED = [
    (template, given)
    for template in (CHATML, SMOLLM, THINKING, TOOLS_TEMPLATE, QWEN3)
    for given in (chat("hello", "one", "again", "two"), OWN)
]


@pytest.mark.parametrize(("template", "given"), [*ASKED, (TOOLS_TEMPLATE, CALLS), (QWEN3, CALLS)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"system": "Be brief."},
        {"system": "Be brief.", "system_mode": "replace", "reasoning": "drop"},
        {"system_mode": "drop"},
    ],
)
def test_the_prompt_of_a_row_is_what_its_last_answer_is_trained_after(
    template: str, given: Conversation, options: dict[str, Any]
) -> None:
    tok = tokenizer(template)
    tokens = one(given, tok, loss_on="last", **options)
    prompts = prompts_of([given], Rendering(**options))
    for again in ({}, options):  # the messages of a prompt are prepared already; once more changes nothing
        (asked,) = render_prompts(prompts, tok, Rendering(**again))
        assert isinstance(asked, Tokens)
        assert asked.ids.tolist() == tokens.ids[: int(tokens.trained.argmax())].tolist()
