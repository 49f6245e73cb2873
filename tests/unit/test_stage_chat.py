"""The conversation: its commands, and what happens where it outgrows the context."""

import logging
from collections.abc import Iterator

import pytest

from tunekit.data.rows import Prompt
from tunekit.errors import RecipeError
from tunekit.models.generate import prompt_ids
from tunekit.models.serve import load_for_inference
from tunekit.stages.chat import CONTROL_CHARACTERS, Session, _turns, obey

GREEDY = {"max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0}


@pytest.fixture
def session() -> Session:
    return Session(*load_for_inference("tiny-random/llama"), None, dict(GREEDY))


def ask(session: Session, text: str) -> str:
    return session.ask(text, lambda piece: None).text


def test_answers_depend_on_what_was_said_until_reset(session: Session) -> None:
    first = ask(session, "hello")
    assert session.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": first}]
    second = ask(session, "hello")
    assert second != first and len(session.messages) == 4
    obey(session, "/reset")
    assert ask(session, "hello") == first


def test_system_begins_anew_below_the_prompt(session: Session) -> None:
    plain = ask(session, "hello")
    assert "is set" in obey(session, "/system  You are a pirate. ")
    assert session.system == "You are a pirate." and session.messages == []
    assert ask(session, "hello") != plain
    obey(session, "/system")
    assert session.system is None
    assert ask(session, "hello") == plain


def test_lines_for_the_model_are_told_from_commands(session: Session) -> None:
    said: list[str] = []
    lines: Iterator[str] = iter(["one\n", "\n", "/nonsense x\n", " /etc/passwd\n", "/help\n", "/exit\n", "never\n"])
    assert list(_turns(session, lines, said.append)) == ["one", "/etc/passwd"]
    assert said[0].startswith("/nonsense is no command")
    assert "/reset" in said[1]


def test_the_oldest_turns_go_when_the_context_is_full_and_it_is_said(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunekit")
    session.system = "Be brief."
    system = {"role": "system", "content": session.system}
    session.model.config.max_position_embeddings = context = 200
    for number in range(6):
        ask(session, f"question {number}")
        asked = prompt_ids(session.tokenizer, Prompt((system, *session.messages[:-1]), "here"))
        assert len(asked) + GREEDY["max_new_tokens"] <= context
    assert session.messages[-2]["content"] == "question 5"
    assert session.messages[0]["role"] == "user" and session.messages[0]["content"] != "question 0"
    assert "longer than the context of 200 tokens" in caplog.text


def test_the_answer_takes_the_room_that_a_long_question_leaves(session: Session) -> None:
    session.model.config.max_position_embeddings = 100
    frame = len(prompt_ids(session.tokenizer, Prompt(({"role": "user", "content": ""},), "here")))
    assert session.ask("x" * (95 - frame), lambda piece: None).num_tokens == 5
    session.messages = []
    with pytest.raises(RecipeError, match="have 100 tokens, the model's context 100"):
        ask(session, "x" * (100 - frame))
    assert session.messages == []


def test_no_escape_sequence_reaches_a_terminal() -> None:
    assert "\x1b]0;title\x07 \x9b31m a\tb\n".translate(CONTROL_CHARACTERS) == "\ufffd]0;title\ufffd \ufffd31m a\tb\n"
