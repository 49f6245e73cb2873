"""A task, as a short YAML file: where the items are, what is asked, how the model answers, what is counted.

Texts of a task are Jinja templates over the columns of a row. A path in a task is relative to its file.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from jinja2 import TemplateSyntaxError
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from tunekit.errors import RecipeError
from tunekit.evals.extract import extractor
from tunekit.evals.metrics import METRICS
from tunekit.evals.template import compiled, compiled_expression
from tunekit.recipe.explain import place_of
from tunekit.recipe.parse import Document, Problem, parse
from tunekit.recipe.types import Count, Section, Text

TEMPLATES = ("prompt", "answer", "example_answer", "group", "chosen", "rejected")
SHIPPED = Path(str(files("tunekit.evals"))) / "tasks"
CHOICE_METRICS = ("accuracy", "acc_norm")
LIKELIHOOD_METRICS = ("word_perplexity", "byte_perplexity", "bits_per_byte")
Kind = Literal["multiple_choice", "generate", "perplexity", "preference"]


class Items(Section):
    """Where the items lie; the keys are those of `data.train` in a recipe."""

    path: Text = Field(description="A file, a folder, a pattern, or the id of a data set of the hub.")
    name: Text | None = Field(None, description="Configuration of a data set of the hub.")
    split: Text | None = Field(None, description="Split of a data set of the hub.")
    data_files: Text | list[Text] | None = Field(None, description="Files of a folder or of a data set of the hub.")
    revision: Text | None = Field(None, description="Commit, tag or branch of a data set of the hub.")
    field: Text | None = Field(None, description="Where the rows lie in a .json file.")


class Generation(Section):
    max_new_tokens: Count = Field(256, description="Tokens of an answer at most.")
    stop: list[Text] = Field([], description="Texts before which an answer ends.")
    temperature: Annotated[float, Field(ge=0, le=10)] = Field(0.0, description="0: the likeliest token each time.")
    samples: Count = Field(1, description="Answers to each item; the first is scored, all are there for consistency.")


class Task(Section):
    """What a task file says."""

    task: Text = Field(description="Its name, in reports and gates.")
    kind: Kind = Field(description="How the model answers: by the likelihood of given choices, or by writing.")
    data: Items = Field(description="The items.")
    description: str = Field("", description="What it measures, in a sentence.")
    license: str = Field("", description="Licence of the items.")
    source: str = Field("", description="Paper and home of the items.")
    where: Text | None = Field(None, description="A Jinja expression: rows for which it is false are left out.")
    prompt: str = Field("", description="What is asked.")
    system: Text | None = Field(None, description="System prompt; without chat it stands before the first prompt.")
    chat: bool = Field(False, description="Ask through the model's chat template.")
    choices: list[str] | Text | None = Field(None, description="Templates of the choices, or an expression for a list.")
    answer: str | int | list[str] | None = Field(
        None, description="The right choice (number, letter or text), or the accepted answers."
    )
    delimiter: str = Field(" ", description="Between a prompt and its answer, where there is no chat.")
    few_shot: Annotated[int, Field(ge=0, le=100)] = Field(0, description="Examples before each item.")
    examples: list[dict[str, Any]] | Items | None = Field(None, description="Rows to take the examples from.")
    example_answer: Text | None = Field(None, description="The answer of an example, where it is more than `answer`.")
    separator: str = Field("\n\n", description="Between the examples, where there is no chat.")
    generation: Generation = Field(Generation.model_validate({}), description="How answers are written.")
    extract: Text = Field("text", description="What of an answer counts: a name, or a regular expression.")
    metrics: Annotated[list[Text], Field(min_length=1)] = Field(description="What is counted.")
    group: Text | None = Field(None, description="A template: scores are also given for each of its values.")
    chosen: Text | None = Field(None, description="Preference: the better answer.")
    rejected: Text | None = Field(None, description="Preference: the worse answer.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of --limit, of sampling and of the intervals.")
    prepare: Text | None = Field(None, description="file.py:function, from a row to a row or rows; needs --allow-code.")

    @model_validator(mode="after")
    def _fits(self) -> "Task":
        needed = {"multiple_choice": ("choices", "answer"), "preference": ("prompt", "chosen", "rejected")}
        for key in needed.get(self.kind, ("prompt",)):
            if getattr(self, key) in (None, ""):
                raise PydanticCustomError("needed", "kind: {kind} needs the key {key}", {"kind": self.kind, "key": key})
        if self.few_shot and not self.examples:
            raise PydanticCustomError("needed", "few_shot needs examples: rows, or where they lie")
        for name in self.metrics:
            of_hub = name.startswith("hub:") and self.kind in ("generate", "multiple_choice")
            if name not in (known := metrics_of(self.kind)) and not of_hub:
                near = difflib.get_close_matches(name, known, n=1)
                guess = f"; did you mean {near[0]}?" if near else ""
                facts = {"name": name, "known": ", ".join(known), "guess": guess, "kind": self.kind}
                raise PydanticCustomError("metric", "metrics: {name}: kind: {kind} has {known}{guess}", facts)
        return self


def metrics_of(kind: Kind) -> tuple[str, ...]:
    """The metrics that a task of this kind may name."""
    if kind == "perplexity":
        return LIKELIHOOD_METRICS
    if kind == "preference":
        return ("accuracy",)
    return tuple(dict.fromkeys([*CHOICE_METRICS, *METRICS])) if kind == "multiple_choice" else tuple(METRICS)


@dataclass(frozen=True)
class FoundTask:
    """A task and the file that it was read from."""

    task: Task
    file: Path


def shipped() -> dict[str, Path]:
    """The tasks that come with the package, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}


def find_task(name: str, changes: Mapping[str, Any] | None = None) -> FoundTask:
    """The task of a name, or in a file. `changes` are keys that take the place of those of the file.

    Raises `RecipeError`: there is none, or what is wrong in it by file, line and key.
    """
    file = shipped().get(name) or Path(name).expanduser()
    if not file.is_file():
        near = difflib.get_close_matches(name, shipped(), n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(
            f"task {name}: no task has this name, and there is no such file{guess}",
            f"Tasks of tunekit: {', '.join(shipped())}. Or give the path of a YAML file.",
        )
    document = parse(_text(file), str(file))
    if not isinstance(document.value, dict):
        raise RecipeError(f"{file}: a task is a mapping of keys to values", "See docs/eval.md for one.")
    document.value.update(changes or {})
    try:
        task = Task.model_validate(document.value)
    except ValidationError as error:
        problems = [_problem(document, detail["loc"], str(detail["msg"])) for detail in error.errors()]
        raise RecipeError(document.report([*document.problems, *problems])) from error
    if document.problems:
        raise RecipeError(document.report(document.problems))
    extractor(task.extract)
    if problems := list(_bad_templates(document, task)):
        raise RecipeError(document.report(problems))
    return FoundTask(task, file)


def _bad_templates(document: Document, task: Task) -> Iterator[Problem]:
    """Texts that are no Jinja, which would fail alike on each row."""
    values = {key: getattr(task, key) for key in TEMPLATES}
    texts = [(key, text) for key, value in values.items() for text in (value if isinstance(value, list) else [value])]
    checks: list[tuple[str, str, Callable[[str], Any]]] = []
    checks += [(key, text, compiled) for key, text in texts if isinstance(text, str)]
    checks += [("choices", text, compiled) for text in (task.choices if isinstance(task.choices, list) else ())]
    expressions = {"where": task.where, "choices": task.choices}
    checks += [(key, text, compiled_expression) for key, text in expressions.items() if isinstance(text, str)]
    for key, text, compile_text in checks:
        try:
            compile_text(text)
        except TemplateSyntaxError as error:
            yield Problem((key,), place_of(document, (key,)).of_value, f"{text!r} is no Jinja: {error.message}")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read: {error}") from error


def _problem(document: Document, location: tuple[str | int, ...], message: str) -> Problem:
    path = tuple(part for part in location if isinstance(part, int) or part in _keys(Task))
    if message.startswith("Extra inputs"):
        path = location
        near = difflib.get_close_matches(str(path[-1]), _keys(Task), n=1)
        message = "unknown key" + (f"; did you mean {near[0]}?" if near else "")
    return Problem(path, place_of(document, path).of_key, message.replace("Input should be", "must be"))


def _keys(model: type[Section]) -> set[str]:
    return {*model.model_fields, *Items.model_fields, *Generation.model_fields}
