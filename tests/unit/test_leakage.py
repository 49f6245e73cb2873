"""Items of a task in the training data: planted ones are found, in a clean set none."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from tunekit.data import formats, sources
from tunekit.data.rows import AnyRow, Conversation, Rejected, Text
from tunekit.evals.leakage import Leakage
from tunekit.evals.leakage import find_leakage as find_in_sets

WORDS = [f"word{i}" for i in range(5000)]


def sentence(seed: int, length: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def chat(question: str, answer: str, number: int) -> Conversation:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Conversation(messages, f"train.jsonl:{number}")


def find_leakage(items: list[dict[str, str]], places: list[str], training: Iterable[AnyRow]) -> Leakage:
    located = list(zip(items, places, strict=False))
    first, other = find_in_sets([located, [({"text": sentence(-1, 40)}, "other:1")]], training)
    assert not other.flagged, "what one task has says nothing of another"
    return first


ITEMS = [{"question": sentence(i, 20), "answer": str(i)} for i in range(50)]
PLACES = [f"task.jsonl:{i + 1}" for i in range(50)]
CLEAN: list[AnyRow] = [chat(sentence(1000 + i, 60), sentence(2000 + i, 60), i) for i in range(500)]


def test_a_clean_set_gives_none() -> None:
    found = find_leakage(ITEMS, PLACES, CLEAN)
    assert (found.flagged, found.exact, found.ngram, found.short) == ((), 0, 0, 0)


def test_planted_items_are_found_whatever_their_case_punctuation_and_surroundings() -> None:
    planted: list[AnyRow] = [
        chat(f"Question: {ITEMS[3]['question'].upper()}?! Answer:", "x", 7),
        Text(
            "",
            sentence(9001, 30) + " " + str(ITEMS[9]["question"]).replace(" ", ", ") + ". " + sentence(9002, 30),
            "b:1",
        ),
    ]
    found = find_leakage(ITEMS, PLACES, [*CLEAN, *planted])
    assert found.flagged == (3, 9) and found.exact == 2
    assert found.examples == ("task.jsonl:4 in train.jsonl:7", "task.jsonl:10 in b:1")


def test_half_of_the_ngrams_are_enough_and_less_are_not() -> None:
    words = str(ITEMS[5]["question"]).split()  # 20 words: 8 n-grams
    for taken, flagged in ((16, ((5,), 1)), (15, ((), 0))):
        found = find_leakage(ITEMS, PLACES, [*CLEAN, Text("", " ".join(words[:taken]), "t:1")])
        assert (found.flagged, found.ngram) == flagged


@pytest.mark.parametrize("length", [6, 9, 12, 13])
def test_short_texts_are_looked_for_whole(length: int) -> None:
    items = [{"question": sentence(77, length)}, {"question": "too short"}]
    found = find_leakage(items, PLACES, [*CLEAN, Text("", f"So: {items[0]['question']}, yes", "t:1")])
    assert found.flagged == (0,) and found.short == 1
    cut = " ".join(items[0]["question"].split()[1:])
    assert find_leakage(items, PLACES, [Text("", f"So: {cut}, yes", "t:1")]).flagged == ()


def test_what_many_items_share_says_nothing() -> None:
    instruction = sentence(5, 30)
    items = [{"prompt": f"{instruction} {sentence(i, 4)}"} for i in range(9)]
    assert find_leakage(items, PLACES, [chat(instruction, "x", 1)]).flagged == ()


def test_memory_is_that_of_the_items(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"prompt": sentence(i, 9), "completion": "x"}) + "\n" for i in range(3000)))
    rows = (row for row in formats.convert(sources.find(str(file)).rows()) if not isinstance(row, Rejected))
    assert find_leakage([{"q": sentence(2999, 9)}], ["t:1"], rows).examples == (f"t:1 in {file}:3000",)
