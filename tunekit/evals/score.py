"""A task on a model: its items answered, each answer scored, the scores with their intervals."""

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunekit.errors import RecipeError
from tunekit.evals.answers import KINDS, Reply, Subject
from tunekit.evals.items import Asked, read_items
from tunekit.evals.metrics import METRICS
from tunekit.evals.statistics import Score, interval, interval_of_set
from tunekit.evals.task import FoundTask, Task

log = logging.getLogger("tunekit")
REWARD = "Tasks of kind preference need a reward model, the others one that writes: measure them apart."


@dataclass(frozen=True)
class TaskResult:
    """Scores of a task (see docs/eval.md for their meaning), what they depend on, and each answer."""

    task: Task
    asked: Asked
    scores: dict[str, Score]
    groups: dict[str, dict[str, Score]]
    replies: list[Reply]
    seconds: float
    configuration: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The task's part of `result.json`."""
        return {
            "task": self.task.task,
            "n": len(self.replies),
            "of": self.asked.of,
            "seed": self.task.seed,
            "seconds": round(self.seconds, 2),
            "scores": {name: each.as_dict() for name, each in self.scores.items()},
            "groups": {
                name: {group: each.as_dict() for group, each in groups.items()} for name, groups in self.groups.items()
            },
            "configuration": self.configuration,
            "cut": sum(bool(reply.cut) for reply in self.replies),
        }


def run_task(found: FoundTask, subject: Subject, limit: int | None = None, prepare: Any = None) -> TaskResult:
    """Asks and scores; says aloud what was cut. Raises `DataError` for rows, `RecipeError` for what cannot be asked."""
    started, task = time.perf_counter(), found.task
    asked = read_items(found, limit, prepare)
    if task.chat and subject.tokenizer.chat_template is None:
        raise RecipeError(
            f"task {task.task}: chat: true, and the model has no chat template",
            "Set chat: false, or take a chat model.",
        )
    if (task.kind == "preference") != (subject.reward is not None):
        raise RecipeError(f"task {task.task}: kind: {task.kind} does not go with the other tasks", REWARD)
    replies = KINDS[task.kind](task, asked.items, subject)
    if cut := sum(bool(reply.cut) for reply in replies):
        became = "not answered" if task.kind == "generate" else "cut at their beginning"
        log.warning("%s: %d of %d items do not fit the model's context: %s", task.task, cut, len(replies), became)
    scores, groups = summarise(task, replies)
    configuration = task.model_dump(mode="json", exclude={"description", "license", "source"}) | {
        "sha256": asked.sha256,
        "limit": limit,
        "chat_template": _template_hash(subject.tokenizer) if task.chat else None,
    }
    return TaskResult(task, asked, scores, groups, replies, time.perf_counter() - started, configuration)


def _template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(json.dumps(tokenizer.chat_template).encode()).hexdigest()[:16]


def summarise(task: Task, replies: Sequence[Reply]) -> tuple[dict[str, Score], dict[str, dict[str, Score]]]:
    """The scores of the answers by metric, and for each group; fills in `values` of each reply."""
    groups = sorted({reply.item.group for reply in replies} - {""})
    scores, by_group = {}, {}
    for name in task.metrics:
        scores[name] = _one(task, name, replies)
        if groups and _of_item(task, name):
            members = {group: [reply for reply in replies if reply.item.group == group] for group in groups}
            found = {group: _one(task, name, chosen) for group, chosen in members.items()}
            by_group[name] = {group: score for group, score in found.items() if score.n}
    return scores, by_group


def _of_item(task: Task, name: str) -> bool:
    return task.kind != "perplexity" and (name == "acc_norm" or METRICS[name].of_item is not None)


def _one(task: Task, name: str, replies: Sequence[Reply]) -> Score:
    if task.kind == "perplexity":
        return replace(interval_of_set(_OF_TEXTS[name], replies, seed=task.seed), better="lower")
    metric = METRICS.get(name)
    if metric is not None and metric.parts is not None:
        parts = metric.parts([each.answered for each in replies])
        return replace(interval(parts, seed=task.seed), better=metric.better)
    if metric is not None and metric.of_set is not None:
        function = metric.of_set
        found = interval_of_set(lambda some: function([each.answered for each in some]), replies, seed=task.seed)
        return replace(found, better=metric.better)
    for reply in replies:
        if name not in reply.values and metric is not None and metric.of_item is not None:
            reply.values[name] = metric.of_item(reply.answered)
    values = [value for reply in replies if (value := reply.values[name]) is not None]
    return replace(interval(values, seed=task.seed), better="higher" if metric is None else metric.better)


def _nats(replies: Sequence[Reply], size: Callable[[str], int]) -> float:
    return -sum(reply.loglikelihoods[0] for reply in replies) / sum(size(str(reply.item.prompt)) for reply in replies)


def _words(text: str) -> int:
    return len(re.split(r"\s+", text))


def _bytes(text: str) -> int:
    return len(text.encode())


_OF_TEXTS: dict[str, Callable[[Sequence[Reply]], float]] = {
    "word_perplexity": lambda replies: math.exp(min(_nats(replies, _words), 700.0)),  # of a word without end
    "byte_perplexity": lambda replies: math.exp(min(_nats(replies, _bytes), 700.0)),
    "bits_per_byte": lambda replies: _nats(replies, _bytes) / math.log(2),
}
