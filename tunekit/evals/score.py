"""A task on a model: its items answered, each answer scored, the scores with their intervals."""

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunekit.data.rows import Prompt
from tunekit.errors import RecipeError
from tunekit.evals.extract import extractor
from tunekit.evals.items import Asked, Item, read_items
from tunekit.evals.likelihood import continuation, room_of, score, windows
from tunekit.evals.metrics import METRICS, Answered
from tunekit.evals.statistics import Score, interval, interval_of_set
from tunekit.evals.task import FoundTask, Task
from tunekit.models.generate import complete, seed_sampling
from tunekit.models.policy import Policy
from tunekit.models.reward import RewardModel

log = logging.getLogger("tunekit")
REWARD = "Tasks of kind preference need a reward model, the others one that writes: measure them apart."
Poll = Callable[[], None]


@dataclass(frozen=True)
class Subject:
    """The model that is measured: its policy, or where preferences are asked for its rewards."""

    policy: Policy | None
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 16
    reward: RewardModel | None = None
    poll: Poll = lambda: None


@dataclass
class Reply:
    """What the model made of an item: `values` are the scores of its answer by metric."""

    item: Item
    answered: Answered
    values: dict[str, float | None] = field(default_factory=dict)
    loglikelihoods: tuple[float, ...] = ()
    cut: int = 0

    def as_line(self) -> dict[str, Any]:
        """The line of `items/TASK.jsonl`."""
        line = {
            "id": self.item.id,
            "place": self.item.place,
            "prompt": self.item.prompt,
            "references": list(self.item.references),
            "answer": self.answered.prediction,
            "completion": self.answered.completion,
            "samples": list(self.answered.samples),
            "scores": {name: value for name, value in self.values.items() if value is not None},
            "group": self.item.group,
            "loglikelihoods": [round(value, 4) for value in self.loglikelihoods],
            "cut": self.cut,
        }
        return {key: value for key, value in line.items() if value not in ("", [], 0)}


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
        log.warning("%s: %d of %d items are longer than the model's context: their beginning was cut", task.task, cut,
                    len(replies))  # fmt: skip
    scores, groups = summarise(task, replies)
    configuration = task.model_dump(mode="json", exclude={"description", "license", "source"}) | {
        "sha256": asked.sha256,
        "limit": limit,
        "chat_template": _template_hash(subject.tokenizer) if task.chat else None,
    }
    return TaskResult(task, asked, scores, groups, replies, time.perf_counter() - started, configuration)


def _template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(json.dumps(tokenizer.chat_template).encode()).hexdigest()[:16]


def _multiple_choice(task: Task, items: Sequence[Item], subject: Subject) -> list[Reply]:
    """The choice of the highest likelihood; by `acc_norm`, of the highest likelihood a character."""
    tokenizer = subject.tokenizer
    contexts = [_context(item, tokenizer) for item in items]
    # Also where nothing stands before it, as in lm-eval; a chat template has its own border.
    delimiter = "" if task.chat else task.delimiter
    rows = [
        continuation(tokenizer, text, delimiter + choice, chat=task.chat)
        for item, text in zip(items, contexts, strict=True)
        for choice in item.choices
    ]
    found = iter(_scored(subject, rows))
    replies = []
    for item in items:
        likelihoods = [next(found) for _ in item.choices]
        totals = tuple(each.total for each in likelihoods)
        best = max(range(len(totals)), key=lambda i: totals[i])
        by_length = max(range(len(totals)), key=lambda i: totals[i] / max(len(item.choices[i]), 1))
        answered = Answered(item.choices[best], item.references, row=item.row, group=item.group)
        values: dict[str, float | None] = {
            "accuracy": float(best == item.gold),
            "acc_norm": float(by_length == item.gold),
        }
        replies.append(Reply(item, answered, values, totals, max(each.cut for each in likelihoods)))
    return replies


def _context(item: Item, tokenizer: PreTrainedTokenizerBase) -> str:
    if isinstance(item.prompt, str):
        return item.prompt
    return str(tokenizer.apply_chat_template(list(item.prompt), add_generation_prompt=True, tokenize=False))


def _scored(subject: Subject, rows: Sequence[tuple[list[int], int]]) -> list[Any]:
    assert subject.policy is not None
    return score(subject.policy, rows, room=room_of(subject.policy.causal.config), poll=subject.poll)


def _perplexity(task: Task, items: Sequence[Item], subject: Subject) -> list[Reply]:
    """The likelihood of each text after the token that begins one, in windows where it is longer than the context."""
    tokenizer = subject.tokenizer
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    assert subject.policy is not None
    length = (room_of(subject.policy.causal.config) or 2**31) - 1
    rows, counts = [], []
    for item in items:
        ids = tokenizer(item.prompt, add_special_tokens=False)["input_ids"]
        mine = [(window, len(window) - scored) for window, scored in windows(ids, prefix, length)]
        rows += mine
        counts.append(len(mine))
    found = iter(_scored(subject, rows))
    totals = [sum(next(found).total for _ in range(count)) for count in counts]
    return [
        Reply(item, Answered("", row=item.row, group=item.group), loglikelihoods=(total,))
        for item, total in zip(items, totals, strict=True)
    ]


def _generate(task: Task, items: Sequence[Item], subject: Subject) -> list[Reply]:
    options = task.generation
    assert subject.policy is not None
    seed_sampling(task.seed)
    prompts = [Prompt(item.prompt, item.place) for item in items for _ in range(options.samples)]
    written = complete(
        subject.policy.causal,
        subject.tokenizer,
        prompts,
        max_new_tokens=options.max_new_tokens,
        batch_size=subject.batch_size,
        temperature=options.temperature,
        stop=options.stop,
        poll=subject.poll,
    )
    texts = [text for _, text, _ in sorted(written)]
    extract = extractor(task.extract)
    replies = []
    for item, begin in zip(items, range(0, len(texts), options.samples), strict=True):
        first, *more = texts[begin : begin + options.samples]
        answered = Answered(
            extract(first),
            item.references,
            first,
            item.row,
            item.group,
            samples=tuple(extract(each) for each in more),
        )
        replies.append(Reply(item, answered))
    return replies


def _preference(task: Task, items: Sequence[Item], subject: Subject) -> list[Reply]:
    """The answer of the higher reward; two equal rewards prefer neither."""
    assert subject.reward is not None
    texts = [_with_answer(item, answer, task, subject.tokenizer) for item in items for answer in item.choices]
    rewards = subject.reward.rewards(texts, subject.poll)
    replies = []
    for item, better, worse in zip(items, rewards[::2], rewards[1::2], strict=True):
        answered = Answered(item.choices[better <= worse], item.choices[:1], row=item.row, group=item.group)
        value = 0.5 if better == worse else float(better > worse)
        replies.append(Reply(item, answered, {"accuracy": value}, (better, worse)))
    return replies


def _with_answer(item: Item, answer: str, task: Task, tokenizer: PreTrainedTokenizerBase) -> str:
    if isinstance(item.prompt, str):
        return item.prompt + task.delimiter + answer
    messages = [*item.prompt, {"role": "assistant", "content": answer}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


KINDS: dict[str, Callable[[Task, Sequence[Item], Subject], list[Reply]]] = {
    "preference": _preference,
    "multiple_choice": _multiple_choice,
    "perplexity": _perplexity,
    "generate": _generate,
}


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
    "word_perplexity": lambda replies: math.exp(_nats(replies, _words)),
    "byte_perplexity": lambda replies: math.exp(_nats(replies, _bytes)),
    "bits_per_byte": lambda replies: _nats(replies, _bytes) / math.log(2),
}
