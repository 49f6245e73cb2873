"""What of a completion counts: cases that a person can read, and lm-eval's own filters."""

import random

import pytest

from tunekit.errors import RecipeError
from tunekit.evals.extract import EXTRACT, extractor, plain_number

CASES = {
    "text": [("  two\nlines \n", "two\nlines"), ("", "")],
    "first_line": [("\n Paris \nLyon", "Paris"), ("Paris", "Paris"), (" \n ", "")],
    "number": [
        ("First 3, then 4. So it is 12.", "12"),
        ("It costs $1,234.00.", "1234"),
        ("It fell to -5 degrees", "-5"),
        ("It is 0.50", "0.50"),
        ("It is .5", ".5"),
        ("It is 7...", "7"),
        ("7 of course ...", "7"),
        ("none at all.", ""),
    ],
    "gsm8k": [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 7\n\nQuestion: 8 and 9?", "7"),
        ("#### $1,000.00 dollars", "1000"),
        ("#### $7\n\nQuestion: 8?", "7"),
        ("####-12", "-12"),
        ("#### 18.", "18"),
        ("The answer is 18 eggs.", "18"),
        ("#### nothing, so 5", "5"),
    ],
    "gsm8k_strict": [("#### 7\n#### 8", "7"), ("#### 1,000.", "1000"), ("####7", ""), ("It is 7", "")],
    "letter": [
        ("(B)", "B"),
        ("B.", "B"),
        ("b)", "B"),
        ("C", "C"),
        ("D\nbecause it is so", "D"),
        ("The answer is B", "B"),
        ("The answer is: **(C)** Paris", "C"),
        ("A is wrong. The answer is D.", "D"),
        ("The answer is A. No, the correct answer is option E.", "E"),
        ("A dog would be (a), so I take (c).", "C"),
        ("A dog. I would say D here", "D"),
        ("Maybe C, or rather D here", "D"),
        ("A dog", ""),
        ("I don't know", ""),
        ("Apples and Dates", ""),
    ],
    "yes_no": [
        ("Yes, it does.", "yes"),
        ("No. There is a yes in it.", "no"),
        ("There is no doubt, so yes", "yes"),
        ("No wait. The answer is: Yes.", "yes"),
        ("Nothing known", ""),
        ("yesterday", ""),
    ],
    "json": [
        ('Call {"a": [1, {"b": "}"}]} and {"c": 2}', '{"a": [1, {"b": "}"}]}'),
        ("```json\n[1, 2]\n```", "[1, 2]"),
        ('{not json} but {"a": 1}', '{"a": 1}'),
        ('{"a": {"b": 1}', '{"b": 1}'),
        ("42", ""),
        ("[" * 5_000, ""),
    ],
    "code": [
        ("Here:\n```python\ndef f():\n    return 1\n```\n```\nx\n```", "def f():\n    return 1"),
        ("```\nx = 1\n", "x = 1"),
        ("    return 1\n", "    return 1"),
        ("Say `x` and\n\n```py\n    return 1\n```", "    return 1"),
    ],
}


@pytest.mark.parametrize(
    ("name", "completion", "answer"), [(name, *case) for name, cases in CASES.items() for case in cases]
)
def test_the_answer_in_a_completion(name: str, completion: str, answer: str) -> None:
    assert extractor(name)(completion) == answer


def test_every_name_has_its_cases() -> None:
    assert set(CASES) == set(EXTRACT)


@pytest.mark.parametrize(
    ("name", "pattern", "select"),
    [
        ("gsm8k_strict", r"#### (\-?[0-9\.\,]+)", 0),  # lm_eval/tasks/gsm8k/gsm8k.yaml
        ("number", r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1),
    ],
)
def test_gsm8k_as_lm_eval_filters_it(name: str, pattern: str, select: int) -> None:
    filters = pytest.importorskip("lm_eval.filters.extraction")
    theirs = filters.RegexFilter(pattern, group_select=select)
    words = ["####", "#### 7", "#### -1,200.", "$3.50", "12", "-4", "1,000,000", "eggs", "so", "5.0", "7.", "a-3", "\n"]
    generator = random.Random(0)
    found = 0
    for _ in range(1000):
        completion = " ".join(generator.choices(words, k=6))
        expected = theirs.apply([[completion]], [{}])[0][0]
        assert extractor(name)(completion) == ("" if expected == "[invalid]" else plain_number(expected)), completion
        found += expected != "[invalid]"
    assert found > 300


def test_of_a_regular_expression_the_last_match_counts() -> None:
    answer = extractor(r"Answer:\s*(\w+)")
    assert answer("Answer: a\nAnswer: b ") == "b"
    assert answer("nothing") == ""


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("leter", ["did you mean letter?", "one group"]),
        ("Answer: .*", ["one group", "it has 0"]),
        ("(a)(b)", ["it has 2"]),
        ("(a", ["no regular expression", "unterminated"]),
    ],
)
def test_what_is_neither_a_name_nor_a_regular_expression_is_refused(spec: str, said: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        extractor(spec)
    for text in (f"extract: {spec}", "gsm8k", *said):
        assert text in str(caught.value)
