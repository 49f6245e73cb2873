"""Which format rows are in, by their keys; and what to say where they are in none."""

from collections.abc import Sequence
from typing import Any

from tunekit.data.formats.registry import FORMATS, Format, Row
from tunekit.errors import DataError

# Words that data sets use for what is asked and for what is answered.
QUESTIONS = ("question", "query", "problem", "instruction", "input", "prompt")
ANSWERS = ("answer", "response", "output", "completion", "target", "solution")


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


def unknown(row: Row, source: str) -> DataError:
    """The error for rows in no known format: their keys, what is accepted, the columns to write if these are clear."""
    accepted = "\n".join(f"  {each.name}: {each.example}" for each in FORMATS.values())
    return DataError(
        f"{source}: a row with the keys {keys(row)} is in no known format",
        f"{_advice(row)}\nAccepted:\n{accepted}",
    )


def keys(row: Row) -> str:
    names = list(row)
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:30]) + more or "(none)"


def question_key(row: Row, but: Sequence[str] = ()) -> str | None:
    """The column that looks like what is asked."""
    return _named(row, QUESTIONS, but)


def _named(row: Row, words: Sequence[str], but: Sequence[str]) -> str | None:
    lower = {key.lower(): key for key, value in row.items() if _is_text(value) and key not in but}
    return next((lower[word] for word in words if word in lower), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _advice(row: Row) -> str:
    question = _named(row, QUESTIONS, but=())
    answer = _named(row, ANSWERS, but=(question or "",))
    if question and answer:
        return (
            f"{question} and {answer} look like a question and its answer; to train on them, write beside the path\n"
            f"  columns: {{instruction: {question}, output: {answer}}}    for a chat, or\n"
            f"  columns: {{prompt: {question}, completion: {answer}}}    for raw text."
        )
    if any(len(key) > 60 or key.lstrip("-").isdecimal() for key in row):
        return "The keys look like a row themselves: put a line with the names of the columns before the first row."
    return 'Name what the columns are beside the path, such as columns: {prompt: "{title}: {body}", completion: label}.'
