r"""What of a completion counts as its answer: a name of `EXTRACT`, or a regular expression with one group.

Numbers come out plain: without "$", thousands commas, a full stop at the end, or ".0". Of the filters that
lm-evaluation-harness has for gsm8k, `gsm8k_strict` is strict-match and `number` is flexible-extract, except that a run
of dots or commas without a digit ("...") is no number here. Where nothing is found, the answer is empty.
"""

import difflib
import json
import re
from collections.abc import Callable

from tunekit.errors import RecipeError

_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_AFTER_HASHES = re.compile(r"####\s*(-?\s?\$?\s?-?[0-9.,]*[0-9])")
_MARK = r"[\s:*(\[\"'`]*"  # what may stand between "is" and the answer: "is: **(B)**"
_ANSWER_LETTER = re.compile(
    rf"(?i:answer|option|choice)(?i:\s+is|\s*:){_MARK}(?:(?i:option|choice)\b{_MARK})?([A-E])\b"
)
_FIRST_LETTER = re.compile(r"\W*([A-Ea-e])(?:[.):,\]*]|\s*$|\s*\n)")
_IN_BRACKETS = re.compile(r"[(\[]([A-Ea-e])[)\]]")
_ALONE = re.compile(r"\b(?:([B-E])|(A)(?!\s+[a-z]))\b(?!')")  # "A dog" begins with an article
_ANSWER_YES_NO = re.compile(rf"\banswer(?:\s+is|\s*:){_MARK}(yes|no)\b", re.IGNORECASE)
_FIRST_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def plain_number(text: str) -> str:
    """ "$1,234.00" as "1234"."""
    return re.sub(r"\.0*$", "", re.sub(r"[$,\s]", "", text).rstrip("."))


def _text(completion: str) -> str:
    return completion.strip()


def _first_line(completion: str) -> str:
    return completion.strip().partition("\n")[0].rstrip()


def _number(completion: str) -> str:
    """The last number."""
    found = [match for match in _NUMBER.findall(completion) if re.search(r"\d", match)]
    return plain_number(found[-1]) if found else ""


def _gsm8k_strict(completion: str) -> str:
    """The number after the first "#### "."""
    match = _STRICT.search(completion)
    return plain_number(match[1]) if match else ""


def _gsm8k(completion: str) -> str:
    """The number after the first ####, else the last number."""
    match = _AFTER_HASHES.search(completion)
    return plain_number(match[1]) if match else _number(completion)


def _letter(completion: str) -> str:
    """A to E: after "the answer is" (the last time), else at the beginning, else the last in brackets or by itself."""
    if said := _ANSWER_LETTER.findall(completion):
        return str(said[-1])
    if first := _FIRST_LETTER.match(completion):
        return first[1].upper()
    if bracketed := _IN_BRACKETS.findall(completion):
        return str(bracketed[-1]).upper()
    alone = ["".join(groups) for groups in _ALONE.findall(completion)]
    return alone[-1] if alone else ""


def _yes_no(completion: str) -> str:
    """ "yes" or "no": after "the answer is" (the last time), else at the beginning, else the last of them."""
    if said := _ANSWER_YES_NO.findall(completion):
        return str(said[-1]).lower()
    if first := _FIRST_YES_NO.match(completion):
        return first[1].lower()
    found = _YES_NO.findall(completion)
    return str(found[-1]).lower() if found else ""


def _json(completion: str) -> str:
    """The first object or list of JSON, as it stands there."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[{\[]", completion):
        try:
            _, end = decoder.raw_decode(completion, match.start())
        except (ValueError, RecursionError):
            continue
        return completion[match.start() : end]
    return ""


def _code(completion: str) -> str:
    """The first fenced block, which an answer that was cut short leaves open; without one, the text."""
    match = _FENCED.search(completion)
    return (match[1] if match else completion).rstrip()


EXTRACT: dict[str, Callable[[str], str]] = {
    "text": _text,
    "first_line": _first_line,
    "number": _number,
    "gsm8k": _gsm8k,
    "gsm8k_strict": _gsm8k_strict,
    "letter": _letter,
    "yes_no": _yes_no,
    "json": _json,
    "code": _code,
}


def extractor(spec: str) -> Callable[[str], str]:
    """The function from a completion to its answer: a name, or a regular expression, of which the last match counts.

    Raises `RecipeError` for what is neither.
    """
    if spec in EXTRACT:
        return EXTRACT[spec]
    try:
        pattern = re.compile(spec)
        problem = f"a regular expression needs one group, (...), for the answer; it has {pattern.groups}"
    except re.error as error:
        pattern, problem = None, f"no regular expression: {error}"
    if pattern is None or pattern.groups != 1:
        near = difflib.get_close_matches(spec, EXTRACT, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(
            f"extract: {spec}: no such name, and {problem}{guess}",
            f"Give one of {', '.join(EXTRACT)}, or a regular expression such as 'Answer: (.*)'.",
        )

    def last_match(completion: str) -> str:
        found = pattern.findall(completion)
        return str(found[-1]).strip() if found else ""

    return last_match
