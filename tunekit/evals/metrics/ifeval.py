"""Instructions whose following can be verified by a program: IFEval (Zhou et al. 2023, arXiv:2311.07911).

Verdicts are those of the published checker, quirks included: a keyword is a regular expression, a highlight in double
asterisks counts twice. Sentences are told apart by nltk's Punkt with the abbreviations below, where the checker takes a
model of English that nltk would have to download: counts differ in texts with rarer abbreviations.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from inspect import signature
from typing import Any

from tunekit.errors import DataError, MissingEnvironment
from tunekit.evals.metrics.metric import Answered, item_metric, set_metric

ABBREVIATIONS = (
    "mr mrs ms dr prof st jr sr vs etc inc ltd co corp e.g i.e u.s u.k a.m p.m no fig al approx gen sen rep gov"
)
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
INSTALL = 'Install it: pip install "tunekit[eval]"'
Check = Callable[..., bool]
CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Registers the check of an instruction: `(answer, **its arguments) -> followed`."""

    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def _compare(count: int, relation: str, wanted: int) -> bool:
    if relation not in ("less than", "at least"):
        raise DataError(f'ifeval: relation "{relation}"; accepted: less than, at least')
    return count < wanted if relation == "less than" else count >= wanted


@check("keywords:existence")
def _keywords(text: str, *, keywords: Sequence[str]) -> bool:
    return all(re.search(each, text, re.IGNORECASE) for each in keywords)


@check("keywords:frequency")
def _keyword_frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(len(re.findall(keyword.strip(), text, re.IGNORECASE)), relation, frequency)


@check("keywords:forbidden_words")
def _forbidden(text: str, *, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{each}\b", text, re.IGNORECASE) for each in forbidden_words)


@check("keywords:letter_frequency")
def _letter(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(Counter(text.lower())[letter.strip().lower()], let_relation, let_frequency)


@check("language:response_language")
def _language(text: str, *, language: str) -> bool:
    found = _detected(text)
    return found is None or found == language


@check("length_constraints:number_sentences")
def _sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    return _compare(len(_punkt().tokenize(text)), relation, num_sentences)


@check("length_constraints:number_paragraphs")
def _paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Paragraphs are told apart by `***`; an empty one is only accepted at either end."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    if any(not each.strip() for each in parts[1:-1]):
        return False
    return sum(bool(each.strip()) for each in parts) == num_paragraphs


@check("length_constraints:number_words")
def _words(text: str, *, num_words: int, relation: str) -> bool:
    return _compare(len(re.findall(r"\w+", text)), relation, num_words)


@check("length_constraints:nth_paragraph_first_word")
def _first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are told apart by an empty line; the nth is counted with empty ones, their number without."""
    parts = text.split("\n\n")
    count = sum(bool(each.strip()) for each in parts)
    if nth_paragraph > count or not (paragraph := parts[nth_paragraph - 1].strip()):
        return False
    word = paragraph.split()[0].lstrip("'").lstrip('"')
    return count == num_paragraphs and re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


@check("detectable_content:number_placeholders")
def _placeholders(text: str, *, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


@check("detectable_content:postscript")
def _postscript(text: str, *, postscript_marker: str) -> bool:
    patterns = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    marker = postscript_marker.strip()
    return bool(re.search(patterns.get(marker, rf"\s*{marker.lower()}.*$"), text.lower(), re.MULTILINE))


@check("detectable_format:number_bullet_lists")
def _bullets(text: str, *, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == num_bullets


@check("detectable_format:constrained_response")
def _constrained(text: str) -> bool:
    return any(each in text for each in OPTIONS)


@check("detectable_format:number_highlighted_sections")
def _highlights(text: str, *, num_highlights: int) -> bool:
    single = [each.strip("*") for each in re.findall(r"\*[^\n\*]*\*", text)]
    double = [each[2:-2] for each in re.findall(r"\*\*[^\n\*]*\*\*", text)]
    return sum(bool(each.strip()) for each in [*single, *double]) >= num_highlights


@check("detectable_format:multiple_sections")
def _sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) - 1 >= num_sections


@check("detectable_format:json_format")
def _json(text: str) -> bool:
    bare = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        bare = bare.removeprefix(fence)
    try:
        json.loads(bare.removesuffix("```").strip())
    except ValueError:
        return False
    return True


@check("detectable_format:title")
def _title(text: str) -> bool:
    return any(each.lstrip("<").rstrip(">").strip() for each in re.findall(r"<<[^\n]+>>", text))


@check("combination:two_responses")
def _two(text: str) -> bool:
    parts = text.split("******")
    if any(not each.strip() for each in parts[1:-1]):
        return False
    said = [each.strip() for each in parts if each.strip()]
    return len(said) == 2 and said[0] != said[1]


@check("combination:repeat_prompt")
def _repeat(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@check("startend:end_checker")
def _end(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@check("startend:quotation")
def _quotation(text: str) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == '"' and bare[-1] == '"'


@check("change_case:capital_word_frequency")
def _capital_words(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    tokenize = _nltk().NLTKWordTokenizer().tokenize
    words = [word for sentence in _punkt().tokenize(text) for word in tokenize(sentence)]
    return _compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


@check("change_case:english_capital")
def _capitals(text: str) -> bool:
    return text.isupper() and _detected(text) in (None, "en")


@check("change_case:english_lowercase")
def _lowercase(text: str) -> bool:
    return text.islower() and _detected(text) in (None, "en")


@check("punctuation:no_comma")
def _no_comma(text: str) -> bool:
    return "," not in text


def followed(row: dict[str, Any], text: str, *, loose: bool) -> list[bool]:
    """For each instruction of a row, whether `text` follows it, or `loose` one of its eight variants."""
    texts = [text]
    if loose:
        lines = text.split("\n")
        cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
        texts = [each for whole in (text, *cut) for each in (whole, whole.replace("*", ""))]
    return [any(each.strip() and check(each) for each in texts) for check in _checks_of(row)]


def _checks_of(row: dict[str, Any]) -> list[Check]:
    """The instructions of a row, each with its arguments. Raises `DataError` where one cannot be verified."""
    names, given = (row.get(key) for key in ("instruction_id_list", "kwargs"))
    if not isinstance(names, list) or not isinstance(given, list) or len(names) != len(given) or not names:
        raise DataError(
            f"ifeval: a row needs instruction_id_list and kwargs, two lists of one length; it has {', '.join(row)}"
        )
    found: list[Check] = []
    for name, values in zip(names, given, strict=True):
        if name not in CHECKS:
            raise DataError(f"ifeval: {name} is no instruction that can be verified; accepted: {', '.join(CHECKS)}")
        # Tables have the keys of all instructions.
        arguments = {key: value for key, value in (values or {}).items() if value}
        try:
            signature(CHECKS[name]).bind("", **arguments)
        except TypeError as error:
            raise DataError(f"ifeval: kwargs of {name}: {error}") from error
        found.append(partial(CHECKS[name], **arguments))
    return found


@item_metric("prompt_strict")
def prompt_strict(answered: Answered) -> float:
    """1 where every instruction of the prompt is followed."""
    return float(all(followed(answered.row, answered.completion, loose=False)))


@item_metric("prompt_loose")
def prompt_loose(answered: Answered) -> float:
    """1 where every instruction is followed, first and last line or asterisks left out if that helps."""
    return float(all(followed(answered.row, answered.completion, loose=True)))


@set_metric("instruction_strict")
def instruction_strict(answers: Sequence[Answered]) -> float:
    """The share of all instructions that are followed."""
    return _share(answers, loose=False)


@set_metric("instruction_loose")
def instruction_loose(answers: Sequence[Answered]) -> float:
    """The share of all instructions that are followed, as in `prompt_loose`."""
    return _share(answers, loose=True)


def _share(answers: Sequence[Answered], *, loose: bool) -> float:
    verdicts = [verdict for each in answers for verdict in _cached(json.dumps(each.row), each.completion, loose)]
    return sum(verdicts) / len(verdicts)


@cache
def _cached(row: str, text: str, loose: bool) -> list[bool]:
    """A bootstrap asks for the same answers many times."""
    return followed(json.loads(row), text, loose=loose)


def _detected(text: str) -> str | None:
    """The language (ISO 639-1); None where none can be told, which counts as followed."""
    try:
        import langdetect
    except ImportError as error:
        raise MissingEnvironment(f"ifeval: {error}", INSTALL) from error
    langdetect.DetectorFactory.seed = 0
    try:
        return str(langdetect.detect(text))
    except langdetect.LangDetectException:
        return None


def _nltk() -> Any:
    try:
        from nltk import tokenize
    except ImportError as error:
        raise MissingEnvironment(f"ifeval: {error}", INSTALL) from error
    return tokenize


@cache
def _punkt() -> Any:
    punkt = _nltk().punkt
    parameters = punkt.PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS.split())
    return punkt.PunktSentenceTokenizer(parameters)
