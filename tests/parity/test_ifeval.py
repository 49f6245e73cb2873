"""Verdicts on instructions equal those of the published checker, in lm-evaluation-harness's port of it."""

import gzip
import itertools
import json
from typing import Any

import pytest

from tunekit.evals.metrics.ifeval import CHECKS, _nltk, _punkt, followed
from tunekit.evals.task import SHIPPED

WORDS = ("the", "river", "runs", "through", "an", "old", "town", "and", "nobody", "knows", "when", "it", "was", "built")


NO_LETTER = {"#", "!"}


def letter_of(given: dict[str, Any]) -> Any:
    return given.get("letter")


def rows() -> list[dict[str, Any]]:
    with gzip.open(SHIPPED.parent / "samples" / "ifeval.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Their sentences are those of a model that is not here; with ours in its place the rest must be equal."""
    import nltk

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "find", lambda *arguments: None)
        from lm_eval.tasks.ifeval import instructions_util, utils

        patch.setattr(instructions_util, "_get_sentence_tokenizer", _punkt)
        words = _nltk().NLTKWordTokenizer()
        split = lambda text: [word for each in _punkt().tokenize(text) for word in words.tokenize(each)]  # noqa: E731
        patch.setattr(instructions_util.nltk, "word_tokenize", split)
        import langdetect

        patch.setattr(langdetect.DetectorFactory, "seed", 0)
        yield utils


def prose(count: int) -> str:
    words = list(itertools.islice(itertools.cycle(WORDS), count))
    sentences = [" ".join(words[i : i + 8]).capitalize() + "." for i in range(0, count, 8)]
    return " ".join(sentences)


GENERAL = [
    "",
    " ",
    prose(30),
    prose(200),
    prose(60).upper(),
    prose(60).lower(),
    '"' + prose(20) + '"',
    "My answer is maybe.",
    "<<A title>>\n" + prose(40),
    "<<>> " + prose(9),
    "* one\n* two\n- three\n  * four\n** not **",
    "*a* **b** * * ****  *c d*\n" + prose(10),
    "First.\n\nSecond, with a comma.\n\nThird!",
    "First part\n***\nSecond part\n***\nThird",
    "***\nOnly\n***",
    "one ****** two",
    "same ****** same",
    "****** a ****** b ******",
    '{"a": [1, 2]}',
    "```json\n{}\n```",
    "```\nnot json\n```",
    "[name] and [place] and [] and [a\nb]",
    "Text.\nP.S. More.\nP.P.S. Still more.",
    "SECTION 1 a SECTION 2 b Section 3 c SECTION  4",
    "El río pasa por la ciudad vieja y nadie sabe cuándo fue construida.",
    "Der Fluss fließt durch die alte Stadt und niemand weiß, wer sie gebaut hat.",
    "123 456 !!!",
    "Dr. Smith paid $3.50 e.g. today. He left at 5 p.m. and came back... Really? Yes!",
    "UPPER words AND some lower ONES, I said. A B-C D",
]


def fitting(row: dict[str, Any]) -> list[str]:
    """Answers made for the instructions of a row: some follow them, some nearly do."""
    made = [row["prompt"], row["prompt"].upper()]
    for given in row["kwargs"]:
        if word := given.get("first_word"):
            parts = [
                f"{word}, {prose(8)}" if i + 1 == given["nth_paragraph"] else prose(9)
                for i in range(given["num_paragraphs"])
            ]
            made += ["\n\n".join(parts), "\n\n\n\n".join(parts)] * 3
        if splitter := given.get("section_spliter"):
            made += [" x ".join(f"{splitter} {i}" for i in range(given["num_sections"]))] * 3
        for value in given.values():
            if value is None:
                continue
            if isinstance(value, list):
                made += [" ".join(value) + ".", prose(20) + " " + " x".join(value), " ".join(value[1:])]
            elif isinstance(value, str):
                made += [
                    value,
                    prose(20) + "\n" + value,
                    f'{prose(10)} {value}"',
                    f"{value} 1 x {value} 2 y",
                    value[:-1],
                ]
            else:
                for n in (value - 1, value, value + 1):
                    made += [
                        prose(8 * n)[:8000],
                        "\n".join(["* item"] * n),
                        " ".join(["[x]"] * n),
                        " ".join(["*x*"] * n),
                    ]
                    made += ["\n\n".join([prose(8)] * n), "\n***\n".join([prose(8)] * n), " ".join(["WORD"] * n)[:4000]]
                    made += [str(given.get("letter") or given.get("keyword") or "x") * n]
    return made


def pairs() -> list[tuple[dict[str, Any], str]]:
    found = []
    for number, row in enumerate(rows()):
        found += [(row, text) for text in GENERAL[number % 7 :: 7]]
        found += [(row, text) for text in fitting(row)[number % 3 :: 3]]
    return found


def test_every_verdict_is_the_published_one(theirs: Any) -> None:
    seen: dict[str, set[bool]] = {name: set() for name in CHECKS}
    different, count = [], 0
    for row, text in pairs():
        example = theirs.InputExample(row["key"], row["instruction_id_list"], row["prompt"], row["kwargs"])
        for loose, judge in (
            (False, theirs.test_instruction_following_strict),
            (True, theirs.test_instruction_following_loose),
        ):
            wanted = judge(example, text).follow_instruction_list
            verdicts = followed(row, text, loose=loose)
            count += 1
            for name, mine, yours in zip(row["instruction_id_list"], verdicts, wanted, strict=True):
                if name == "keywords:letter_frequency" and not NO_LETTER.isdisjoint(map(letter_of, row["kwargs"])):
                    continue  # the published checker takes a letter at random in the place of what is none
                seen[name].add(mine)
                if mine != yours:
                    different.append((name, row["kwargs"], text[:80], mine, yours, loose))
    assert not different, different[:5]
    assert count > 5000
    once = [name for name, verdicts in seen.items() if len(verdicts) < 2]
    assert not once, f"never both followed and not: {once}"
