"""From sources to stores: what is kept under which key, what is said, what becomes of rows of each kind."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tunekit.data import sources, tokenise
from tunekit.data.notes import BEGINS_IN_PROMPT, BEGINS_IN_SPACE, MANY_TOKENS, OWN_ROWS, say_notes
from tunekit.data.rendering import Rendering
from tunekit.data.rows import Conversation, Preference, Prompt, Rejected, Unpaired
from tunekit.data.store import Rendered, Store
from tunekit.data.tokenise import Reading, first_rows, rendered, tokenised
from tunekit.errors import DataError
from tunekit.models.tiny_random import tokenizer

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CHAT = {"messages": [USER, ANSWER]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "tokens"


def written(folder: Path, *rows: Any, name: str = "a.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def made(path: Path, rendering: Rendering | None = None, tok: Any = None, **options: Any) -> Store:
    reading = Reading(sources.find(str(path)), **options)
    return tokenised(reading, tok or tokenizer(), rendering or Rendering())


def test_the_same_content_is_tokenised_once(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, CHAT, CHAT)
    first = made(path)
    with caplog.at_level(logging.INFO, logger="tunekit"):
        again = made(path)
    assert again.folder == first.folder and len(list(cache.iterdir())) == 1
    assert "a.jsonl: 2 rows, format messages (detected), tokenised before" in caplog.text


def test_rows_that_change_while_they_are_read_are_not_kept(tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path, CHAT)
    tok, encode = tokenizer(), PreTrainedTokenizerFast.__call__

    class Writing(type(tok)):  # type: ignore[misc]
        def __call__(self, *args: Any, **options: Any) -> Any:
            written(tmp_path, CHAT, CHAT)
            return encode(self, *args, **options)

    tok.__class__ = Writing
    with pytest.raises(DataError, match=r"a\.jsonl: changed while it was read"):
        made(path, tok=tok)
    assert not list(cache.iterdir())


def test_a_renamed_file_is_named_as_it_is_now(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    written(tmp_path / "d", CHAT)
    assert made(tmp_path / "d")[0].source.endswith("d/a.jsonl:1")
    (tmp_path / "d" / "a.jsonl").rename(tmp_path / "d" / "b.jsonl")
    assert made(tmp_path / "d")[0].source.endswith("d/b.jsonl:1")


def test_a_damaged_store_is_not_said_to_have_been_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, CHAT)
    (made(path).folder / "rows.arrow").write_bytes(b"")
    with caplog.at_level(logging.INFO, logger="tunekit"):
        made(path)
    assert "tokenised again" in caplog.text and "tokenised before" not in caplog.text


def test_whatever_the_tokens_depend_on_makes_another_store(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, {**CHAT, "other": [USER, ANSWER]})
    made(path)
    for rendering in (
        Rendering(loss_on="all"),
        Rendering(system="Be kind."),
        Rendering(reasoning="drop"),
        Rendering(system_mode="drop"),
    ):
        made(path, rendering)
    made(path, format="messages")
    made(path, columns={"messages": "other"})
    template, special = tokenizer(), tokenizer()
    template.chat_template = template.chat_template.replace("assistant", "Assistant")
    special.add_special_tokens({"additional_special_tokens": ["<x>"]})
    made(path, tok=template)
    made(path, tok=special)
    monkeypatch.setattr(tokenise, "version", lambda name: "0")
    made(path)
    monkeypatch.setattr(tokenise, "_code_hash", lambda: "")
    made(path)
    written(tmp_path, CHAT, CHAT)
    made(path)
    assert len(list(cache.iterdir())) == 12


def test_a_template_that_says_the_date_is_tokenised_anew_each_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, dated = written(tmp_path, CHAT), tokenizer()
    dated.chat_template = "{{ strftime_now('%d') }}\n" + dated.chat_template

    class Tomorrow:
        @staticmethod
        def today() -> Any:
            return type("Date", (), {"isoformat": lambda self: "2999-01-01"})()

    today, plain = made(path, tok=dated).folder, made(path).folder
    given = made(path, Rendering(date="2001-02-03"), dated)
    assert given.folder != today and tokenizer().decode(given[0].ids).startswith("03\n")
    assert made(path, Rendering(date=f"{date.today()}"), dated).folder == today
    assert made(path, Rendering(date="2001-02-03")).folder == plain
    monkeypatch.setattr(tokenise, "date", Tomorrow)
    assert made(path, tok=dated).folder != today and made(path).folder == plain
    assert made(path, Rendering(date="2001-02-03"), dated).folder == given.folder, "as the day that a run began with"


def test_rows_of_every_kind_are_kept_with_what_was_read(tmp_path: Path) -> None:
    rows: dict[str, tuple[Any, type, int]] = {
        "conversations": (CHAT, Conversation, 1),
        "pairs": ({"prompt": "a", "chosen": "b", "rejected": "c"}, Preference, 2),
        "unpaired": ({"prompt": "a", "completion": "b", "label": True}, Unpaired, 1),
        "prompts": ({"prompt": [USER]}, Prompt, 1),
    }
    for kind, (row, expected, count) in rows.items():
        store = made(written(tmp_path, row, row, name=f"{kind}.jsonl"))
        assert store.report["kind"] == kind and len(store) == 2 * count
        assert type(store.row(0)) is expected
    pair = made(tmp_path / "pairs.jsonl")
    assert [tokenizer().decode(row.ids[row.trained]) for row in pair[:2]] == ["b<|im_end|>", "c<|im_end|>"]
    assert [pair.row(i).source.rpartition(":")[2] for i in range(4)] == ["1", "1", "2", "2"]
    assert pair.row(1) == pair.row(0)


@pytest.mark.parametrize(("length", "sizes"), [(3, [3, 3, 1]), (600, [2, 2, 2, 1]), (5000, [1] * 7)])
def test_a_chunk_has_a_number_of_rows_or_of_characters(
    length: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenise, "CHUNK", 3)
    monkeypatch.setattr(tokenise, "CHUNK_TEXT", 1000)
    rows: list[Any] = [Conversation((USER, {**ANSWER, "content": "x" * length}), f"a:{i}") for i in range(7)]
    rows[3] = Rejected("a:3", "not JSON", "x" * length)
    chunks = list(rendered(enumerate(rows), tokenizer(), Rendering(), Counter()))
    assert [len(chunk) for chunk in chunks] == sizes
    made = [(i, each) for chunk in chunks for i, each in chunk]
    assert [i for i, _ in made] == list(range(7)) and made[3][1] is rows[3]
    assert [each.row for _, each in made if isinstance(each, Rendered)] == [row for row in rows if row is not rows[3]]


def test_a_row_without_a_trained_token_is_rejected(tmp_path: Path) -> None:
    silent = {"messages": [USER, {**ANSWER, "train": False}]}
    store = made(written(tmp_path, CHAT, silent))
    (rejected,) = store.rejected()
    assert rejected.source.endswith("a.jsonl:2") and "no trained token under data.loss_on: assistant" in rejected.reason
    assert len(store) == 1 and store.report["rejected"] == 1


def test_malformed_lines_misfits_and_what_a_template_refuses_are_rejected_alike(tmp_path: Path) -> None:
    path = written(tmp_path, CHAT, {"messages": "x"}, {"messages": [{"role": "user", "content": "<|im_end|>"}, ANSWER]})
    with path.open("a") as file:
        file.write("{broken\n")
    store = made(path)
    assert [each.source.rpartition(":")[2] for each in store.rejected()] == ["2", "3", "4"] and len(store) == 1


def test_the_ids_that_end_answers_are_known(tmp_path: Path) -> None:
    """As in base models: the template ends a turn with a special token that is not the tokenizer's eos_token."""
    chatty = tokenizer()
    chatty.eos_token = "<|endoftext|>"
    end, eos = (chatty.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    chat = written(tmp_path, CHAT)
    for loss_on in ("assistant", "all"):
        assert made(chat, Rendering(loss_on=loss_on), chatty).report["terminators"] == [end]
    text = written(tmp_path, {"prompt": "a", "completion": "b"}, name="b.jsonl")
    assert made(text, tok=chatty).report["terminators"] == [eos]


def test_under_all_the_ids_that_end_turns_are_known_and_not_only_what_ends_the_text(tmp_path: Path) -> None:
    """As in Phi-3: a token ends the document that ends no turn."""
    ending = tokenizer()
    ending.chat_template += "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"
    end = ending.convert_tokens_to_ids("<|im_end|>")
    chat = written(tmp_path, CHAT, {"messages": [USER, {**ANSWER, "content": "<|im_end|>"}]})
    for loss_on in ("assistant", "all"):
        assert made(chat, Rendering(loss_on=loss_on), ending).report["terminators"] == [end]
    both = written(tmp_path, {"prompt": [USER], "completion": [ANSWER]}, {"prompt": "a", "completion": "b"})
    ending.eos_token = "<|endoftext|>"
    eos = ending.convert_tokens_to_ids("<|endoftext|>")
    assert made(both, Rendering(loss_on="all"), ending).report["terminators"] == sorted([end, eos])


THOUGHTS = {"messages": [USER, {**ANSWER, "content": "<think>x</think>Hello"}] * 8}
STRIPPING = (
    "{% for m in messages %}{% set c = m.content if loop.last else m.content.split('</think>')[-1] %}"
    "{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_rows_of_their_own_that_multiply_the_tokens_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stripping = tokenizer()
    stripping.chat_template = STRIPPING
    few = {"messages": THOUGHTS["messages"][:4]}
    store = made(written(tmp_path, THOUGHTS), tok=stripping)
    factor = store.report["notes"][MANY_TOKENS]
    assert factor == round(store.lengths.sum() / store.lengths.max()) and 4 <= factor <= 5
    (record,) = [each for each in caplog.records if MANY_TOKENS in each.message]
    assert record.levelno == logging.WARNING and f"{factor} times" in record.message
    assert "data.reasoning: template" in MANY_TOKENS
    assert MANY_TOKENS not in made(written(tmp_path, few), tok=stripping).report["notes"]
    assert (
        MANY_TOKENS not in made(written(tmp_path, THOUGHTS), Rendering(reasoning="template"), stripping).report["notes"]
    )


@pytest.mark.parametrize(("bad", "level"), [(1, logging.INFO), (2, logging.WARNING)])
def test_what_the_user_should_change_is_a_warning_where_it_is_in_more_than_one_row_of_a_hundred(
    bad: int, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tunekit"):
        say_notes("a.jsonl", {BEGINS_IN_SPACE: bad, BEGINS_IN_PROMPT: bad, OWN_ROWS: 100}, 100)
    assert [record.levelno for record in caplog.records] == [level, level, logging.INFO]
    assert caplog.records[0].message == f"a.jsonl: {bad} {BEGINS_IN_SPACE}"


def test_keys_that_are_not_used_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tunekit"):
        made(written(tmp_path, {**CHAT, "id": 1}, {**CHAT, "score": 2}))
    assert "keys that are not used: id, score" in caplog.text


def test_the_first_rows_are_read_without_the_rest_and_without_the_cache(tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path, CHAT, CHAT, CHAT, CHAT)
    store = first_rows(Reading(sources.find(str(path))), 2, tokenizer(), Rendering())
    assert len(store) == 2 and not cache.exists()
    folder = store.folder
    del store
    assert not folder.exists()


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    slow = tokenizer()
    slow.__class__ = type("SlowTokenizer", (type(slow),), {"is_fast": False})
    with pytest.raises(DataError, match="SlowTokenizer is a slow tokenizer"):
        made(written(tmp_path, CHAT), tok=slow)
