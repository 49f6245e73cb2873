"""From the rows of a task to its items: what is asked, which answers there are, which is right."""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunekit.data import sources
from tunekit.data.rows import Messages, Rejected
from tunekit.data.sources import RowSource, first_problems
from tunekit.errors import DataError, RecipeError
from tunekit.evals.task import FoundTask, Items, Task

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
_JINJA.filters["number"] = lambda value: f"{float(value):g}"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One question: `prompt` is raw text or messages, `gold` the number of the right one of `choices`.

    `references` are the accepted answers where the model writes; `chosen` and `rejected` are those of a preference.
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


def find_source(where: Items, file: Path) -> RowSource:
    """The source of a task's rows; a relative path is one beside the task file, if it is there."""
    beside = file.parent / where.path
    path = str(beside) if beside.exists() else where.path
    return sources.find(path, **where.model_dump(exclude={"path"}))


def read_items(found: FoundTask, limit: int | None = None, prepare: Any = None) -> Asked:
    """The items of a task in their order; with `limit`, that many of them, chosen by the task's seed.

    Raises `DataError` naming the rows that do not have what the task's templates ask for.
    """
    task = found.task
    source = find_source(task.data, found.file)
    rows = [each for each in _read(source, prepare) if task.where is None or _truth(task, each)]
    if not rows:
        raise DataError(f"task {task.task}: {source.name} has no row" + (f" with {task.where}" if task.where else ""))
    chosen = range(len(rows))
    if limit is not None and limit < len(rows):
        chosen = sorted(random.Random(task.seed).sample(chosen, limit))  # type: ignore[assignment]
    shots = _Shots(task, found.file, prepare, [row for row, _ in rows])
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

    def __init__(self, task: Task, file: Path, prepare: Any, rows: Sequence[Row]) -> None:
        self.task, self.own = task, False
        given = task.examples
        if isinstance(given, Items):
            source = find_source(given, file)
            self.own = source.fingerprint() == find_source(task.data, file).fingerprint()
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
        references = tuple(_answers(task, row))
        if choices:
            gold = _number(references[0], choices, is_number=_is_number(task, row))
            references = (choices[gold],)
    group = "" if task.group is None else render(task.group, row)
    return Item(place, row, prompt, choices, gold, references, group)


def _choices(task: Task, row: Row) -> tuple[str, ...]:
    if isinstance(task.choices, str):
        return tuple(str(each) for each in evaluated(task.choices, row))
    return tuple(render(each, row) for each in task.choices or ())


def _answers(task: Task, row: Row) -> list[str]:
    """The accepted answers; a bare expression in braces may give a list of them."""
    answer = "" if task.answer is None else task.answer
    if isinstance(answer, list):
        return [render(each, row) for each in answer]
    bare = re.fullmatch(r"\{\{((?:(?!\}\}).)*)\}\}", str(answer).strip(), re.DOTALL)
    if bare is None:
        return [render(str(answer), row)]
    value = evaluated(bare[1], row)
    values = value if isinstance(value, list | tuple) else [value]
    return [f"{each:g}" if isinstance(each, float) and each.is_integer() else str(each) for each in values]


def _is_number(task: Task, row: Row) -> bool:
    """Whether the answer is a whole number and no text, also where a choice reads the same."""
    bare = re.fullmatch(r"\{\{((?:(?!\}\}).)*)\}\}", str(task.answer).strip(), re.DOTALL)
    value = task.answer if bare is None else evaluated(bare[1], row)
    return isinstance(value, int) and not isinstance(value, bool)


def _number(answer: str, choices: Sequence[str], *, is_number: bool) -> int:
    """Which choice an answer names: by its number (from 0), its letter or its text."""
    if answer in choices and not is_number:
        return choices.index(answer)
    if answer.isdigit() and int(answer) < len(choices):
        return int(answer)
    if len(answer) == 1 and answer.upper() in LETTERS[: len(choices)]:
        return LETTERS.index(answer.upper())
    raise ValueError(f"answer: {answer!r} is none of the choices: {', '.join(map(repr, choices))}")


def _target(task: Task, row: Row) -> str:
    """What an example shows as its answer."""
    if task.example_answer is not None:
        return render(task.example_answer, row)
    answer, choices = _answers(task, row)[0], _choices(task, row)
    return choices[_number(answer, choices, is_number=_is_number(task, row))] if choices else answer


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


def render(template: str, row: Row) -> str:
    return _compiled(template).render(dict(row))


def evaluated(expression: str, row: Row) -> Any:
    return _expression(expression)(dict(row))


@lru_cache(1000)
def _compiled(template: str) -> Template:
    return _JINJA.from_string(template)


@lru_cache(1000)
def _expression(expression: str) -> Callable[..., Any]:
    return _JINJA.compile_expression(expression, undefined_to_none=False)


def check_templates(task: Task) -> None:
    """Raises `RecipeError` for a template that is no Jinja."""
    texts = {"prompt": task.prompt, "group": task.group, "example_answer": task.example_answer}
    for key, text in texts.items():
        try:
            _JINJA.parse(text or "")
        except TemplateError as error:
            raise RecipeError(f"task {task.task}: {key}: {error}", "Texts of a task are Jinja templates.") from error
