"""From the rows of a task to its items: what is asked, which answers there are, which is right."""

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from tunekit.data import sources
from tunekit.data.rows import Messages, Rejected
from tunekit.data.sources import RowSource, first_problems
from tunekit.errors import DataError
from tunekit.evals.task import FoundTask, Items, Task
from tunekit.evals.template import evaluated, render

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One question: `prompt` is raw text or messages, `gold` the number of the right one of `choices`.

    `references` are the accepted answers. Of a preference the choices are the better and the worse answer.
    """

    place: str
    row: dict[str, Any]
    prompt: str | Messages
    choices: tuple[str, ...] = ()
    gold: int = 0
    references: tuple[str, ...] = ()
    group: str = ""

    @property
    def id(self) -> str:
        """Equal where the same is asked and the same is right, whatever file it comes from."""
        asked = [self.prompt, self.choices, self.gold, self.references]
        return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Asked:
    """The items of a task: `of` is how many it has in all, `sha256` is that of their content."""

    items: list[Item]
    of: int
    sha256: str


def find_source(found: FoundTask, where: Items | None = None) -> RowSource:
    """The source of a task's rows, or those at `where`; a relative path is one beside the task file, if it is there.

    Raises what `sources.find` raises.
    """
    where = where or found.task.data
    beside = found.file.parent / where.path
    try:
        return sources.find(str(beside) if beside.exists() else where.path, **where.model_dump(exclude={"path"}))
    except DataError as error:
        fix = f"Correct data in {found.file}, or give other rows: --data {found.task.task}=PATH."
        raise DataError(f"task {found.task.task}: {error.message}", fix) from error


def read_items(found: FoundTask, limit: int | None = None, prepare: Any = None) -> Asked:
    """The items of a task in their order; with `limit`, that many of them, chosen by the task's seed.

    Raises `DataError` naming the rows that do not have what the task's templates ask for.
    """
    task = found.task
    source = find_source(found)
    rows = [each for each in _read(source, prepare) if task.where is None or _truth(task, each)]
    if not rows:
        raise DataError(f"task {task.task}: {source.name} has no row" + (f" with {task.where}" if task.where else ""))
    chosen = range(len(rows))
    if limit is not None and limit < len(rows):
        chosen = sorted(random.Random(task.seed).sample(chosen, limit))  # type: ignore[assignment]
    shots = _Shots(found, prepare, [row for row, _ in rows])
    items, problems = [], []
    for number in chosen:
        row, place = rows[number]
        try:
            items.append(_item(task, row, place, shots.of(number)))
        except (TemplateError, ValueError, TypeError, ArithmeticError) as error:
            problems.append(f"{place}: {error}")
    if problems:
        raise DataError(
            f"task {task.task}: {len(problems):,} of {len(items) + len(problems):,} rows do not fit its templates:\n"
            + first_problems(problems),
            f"Correct {found.file}, or give rows with these columns: --data {task.task}=PATH.",
        )
    return Asked(items, len(rows), source.fingerprint())


def _read(source: RowSource, prepare: Any) -> Iterator[tuple[dict[str, Any], str]]:
    for each in source.rows():
        if isinstance(each, Rejected):
            raise DataError(f"{each.source}: {each.reason}", each.fix)
        row, place = each
        if prepare is None:
            yield row, place
            continue
        made = prepare(row)
        yield from ((one, place) for one in (made if isinstance(made, list) else [made]))


def _truth(task: Task, each: tuple[dict[str, Any], str]) -> bool:
    row, place = each
    try:
        return bool(evaluated(str(task.where), row))
    except TemplateError as error:
        raise DataError(f"task {task.task}: where: {task.where}: {place}: {error}") from error


class _Shots:
    """The examples before each item: the same for all, or where they come from the items, never the item itself."""

    def __init__(self, found: FoundTask, prepare: Any, rows: Sequence[Row]) -> None:
        self.task, self.own = found.task, False
        task, given = found.task, found.task.examples
        if isinstance(given, Items):
            source = find_source(found, given)
            self.own = source.fingerprint() == find_source(found).fingerprint()
            self.rows: Sequence[Row] = rows if self.own else [row for row, _ in _read(source, prepare)]
        else:
            self.rows = given or []
        if len(self.rows) - self.own < task.few_shot:
            raise DataError(f"task {task.task}: few_shot: {task.few_shot}, and there are {len(self.rows)} examples")

    def of(self, number: int) -> list[Row]:
        """Examples that were written down come in their order; of a data set, a choice by the seed."""
        if isinstance(self.task.examples, Items):
            chosen = random.Random(self.task.seed).sample(range(len(self.rows)), self.task.few_shot + self.own)
            return [self.rows[i] for i in chosen if not (self.own and i == number)][: self.task.few_shot]
        return list(self.rows[: self.task.few_shot])


def _item(task: Task, row: dict[str, Any], place: str, shots: Sequence[Row]) -> Item:
    choices = _choices(task, row)
    prompt: str | Messages = _conversation(task, row, shots) if task.chat else _text(task, row, shots)
    gold, references = 0, tuple[str, ...]()
    if task.kind == "preference":
        choices = (render(str(task.chosen), row), render(str(task.rejected), row))
    elif task.answer is not None:
        answers = _answers(task, row)
        if choices:
            gold = _number(answers[0], choices)
        references = (choices[gold],) if choices else tuple(map(_plain, answers))
    group = "" if task.group is None else render(task.group, row)
    return Item(place, row, prompt, choices, gold, references, group)


def _choices(task: Task, row: Row) -> tuple[str, ...]:
    if isinstance(task.choices, str):
        return tuple(str(each) for each in evaluated(task.choices, row))
    return tuple(render(each, row) for each in task.choices or ())


def _answers(task: Task, row: Row) -> list[Any]:
    """The accepted answers; a bare expression in braces gives its value, which may be a list of them."""
    if isinstance(task.answer, list):
        return [render(each, row) for each in task.answer]
    if not isinstance(task.answer, str):
        return [task.answer]
    bare = re.fullmatch(r"\{\{((?:(?!\}\}).)*)\}\}", task.answer.strip(), re.DOTALL)
    value = render(task.answer, row) if bare is None else evaluated(bare[1], row)
    return list(value) if isinstance(value, list | tuple) else [value]


def _plain(answer: Any) -> str:
    return f"{answer:g}" if isinstance(answer, float) and answer.is_integer() else str(answer)


def _number(answer: Any, choices: Sequence[str]) -> int:
    """Which choice an answer names: a whole number its place, from 0; a text its text, its letter or its place."""
    text = _plain(answer)
    if text in choices and (isinstance(answer, bool) or not isinstance(answer, int)):
        return choices.index(text)
    if text.isdigit() and int(text) < len(choices):
        return int(text)
    if len(text) == 1 and text.upper() in LETTERS[: len(choices)]:
        return LETTERS.index(text.upper())
    raise ValueError(f"answer: {text!r} is none of the choices: {', '.join(map(repr, choices))}")


def _target(task: Task, row: Row) -> str:
    """What an example shows as its answer."""
    if task.example_answer is not None:
        return render(task.example_answer, row)
    answer, choices = _answers(task, row)[0], _choices(task, row)
    return choices[_number(answer, choices)] if choices else _plain(answer)


def _text(task: Task, row: Row, shots: Sequence[Row]) -> str:
    parts = [] if task.system is None else [task.system]
    parts += [render(task.prompt, shot) + task.delimiter + _target(task, shot) for shot in shots]
    return task.separator.join([*parts, render(task.prompt, row)])


def _conversation(task: Task, row: Row, shots: Sequence[Row]) -> Messages:
    messages = [] if task.system is None else [{"role": "system", "content": task.system}]
    for shot in shots:
        messages.append({"role": "user", "content": render(task.prompt, shot)})
        messages.append({"role": "assistant", "content": _target(task, shot)})
    return (*messages, {"role": "user", "content": render(task.prompt, row)})
