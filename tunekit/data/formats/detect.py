"""Which format rows are in, by their keys; and what to say where they are in none."""

import json
import re
from collections.abc import Sequence
from typing import Any

from tunekit.data.formats.messages import check_conversation, read_messages
from tunekit.data.formats.registry import FORMATS, Format, Row
from tunekit.data.rows import Refused
from tunekit.errors import DataError

# Words that data sets use for what is asked, for what it is asked about, and for what is answered.
QUESTIONS = ("question", "query", "problem", "instruction", "input", "prompt")
CONTEXTS = ("context", "passage", "body", "input")
ANSWERS = ("answer", "response", "output", "completion", "target", "solution", "code", "sql", "summary", "translation")
# And for what is said of a text.
LABELS = ("label", "category")
PLAIN = re.compile(r"[^\W\d][\w .-]*")  # a string that YAML needs no quotes for


def detect(row: Row) -> Format | None:
    """The first format that claims the row and whose keys it has. None where it has them only in part or not at all.

    A key without a value is in doubt: the next row may have it. A format whose keys all lack a value is passed over,
    as tables have columns for what only other rows hold.
    """
    for candidate in FORMATS.values():
        if not candidate.claims(row):
            continue
        for needed in candidate.needs:
            present = [row[key] is not None for key in needed if key in row]
            if len(present) == len(needed) and any(present):
                return candidate if all(present) else None
    return None


def first_complete(row: Row) -> Format | None:
    """The first format all of whose keys have a value, whatever other formats have in part."""
    complete = (each for each in FORMATS.values() if each.claims(row) and not each.missing(row))
    return next(complete, None)


def answer_keys(row: Row, words: Sequence[str] = ANSWERS, but: Sequence[str] = ()) -> list[str]:
    """The columns that look like what is answered."""
    return [key for key, value in row.items() if key.lower() in words and value is not None and key not in but]


def unknown(row: Row, source: str) -> DataError:
    """The error for rows in no known format: their keys, what is accepted, the columns to write if these are clear."""
    accepted = "\n".join(f"  {each.name}: {each.example}" for each in FORMATS.values())
    empty = {key: value for key, value in row.items() if value is None}
    null = f" (null: {keys(empty)})" if empty else ""
    return DataError(
        f"{source}: a row with the keys {keys(row)}{null} is in no known format",
        "\n".join([*_advice(row), f"Accepted:\n{accepted}"]),
    )


def keys(row: Row) -> str:
    names = list(row)
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:30]) + more or "(none)"


def question_key(row: Row, words: Sequence[str] = QUESTIONS, but: Sequence[str] = ()) -> str | None:
    """The column that looks like what is asked."""
    lower = {key.lower(): key for key, value in row.items() if _is_text(value) and key not in but}
    return next((lower[word] for word in words if word in lower), None)


def as_yaml(columns: dict[str, str]) -> str:
    """`columns: {key: column, ...}`, as a recipe has it."""
    pairs = [f"{key}: {name if PLAIN.fullmatch(name) else json.dumps(name)}" for key, name in columns.items()]
    return f"columns: {{{', '.join(pairs)}}}"


def _advice(row: Row) -> list[str]:
    """What to write in the recipe, the likeliest first."""
    chat = next((key for key, value in row.items() if key != "prompt" and _is_chat(value)), None)
    question = question_key(row, (*QUESTIONS, "text"))
    answers = answer_keys(row, (*ANSWERS, *LABELS) if "text" in row else ANSWERS, but=(question or "",))
    answers = sorted((key for key in answers if _is_text(row[key])), key=lambda key: -len(str(row[key])))
    advice = []
    if chat:
        advice.append(f"{chat} looks like a conversation: beside the path, {as_yaml({'messages': chat})}")
    elif question and answers:
        advice.append(_pairing(row, question, answers))
    if row.get("text"):
        advice.append("format: text takes the rows as they are, by text alone.")
    if row.get("prompt"):
        kept = f"; with {as_yaml({'answer': _column(row, answers[0])})} it keeps the answer" if answers else ""
        advice.append(f"format: prompt takes the rows as they are, by prompt alone{kept}.")
    if advice:
        return advice
    if any(len(key) > 60 or key.lstrip("-").isdecimal() for key in row):
        return ["The keys look like a row themselves: put a line with the names of the columns before the first row."]
    return [
        "Name what the columns are beside the path, such as columns: {text: body}, or "
        'columns: {prompt: "{title}: {body}", completion: label}.'
    ]


def _pairing(row: Row, question: str, answers: list[str]) -> str:
    """The columns to write where it is clear what is asked and what is answered."""
    answer, *others = answers
    context = question_key(row, CONTEXTS, but=(question,))
    as_chat = {"instruction": question} | ({"input": context} if context else {}) | {"output": _column(row, answer)}
    as_text = {"prompt": f"{{{question}}} {{{context}}}" if context else question, "completion": _column(row, answer)}
    other = f" (or {', '.join(others)})" if others else ""
    return (
        f"{question} and {answer}{other} look like a question and its answer; to train on them, write beside the path\n"
        f"  {as_yaml(as_chat)}    for a chat, or\n"
        f"  {as_yaml(as_text)}    for raw text."
    )


def _column(row: Row, key: str) -> str:
    """What `columns` says to get a text from the column."""
    return f"{{{key}}}" if isinstance(row[key], bool) else key


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _is_chat(value: Any) -> bool:
    try:
        return bool(check_conversation(read_messages(value, "")))
    except Refused:
        return False
