"""How a model answers the items of a task: by likelihood, by writing, by rewards."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from tunekit.data.rows import Prompt
from tunekit.evals.extract import extractor
from tunekit.evals.items import Item
from tunekit.evals.likelihood import Likelihood, continuation, room_of, score, windows
from tunekit.evals.metrics import Answered
from tunekit.evals.task import Task
from tunekit.models.generate import all_prompt_ids, complete, seed_sampling
from tunekit.models.policy import Policy
from tunekit.models.reward import RewardModel
from tunekit.models.serve import context_of

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
    """What the model made of an item: `values` are the scores of its answer by metric; `cut`: what had no room."""

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


def _scored(subject: Subject, rows: Sequence[tuple[list[int], int]]) -> list[Likelihood]:
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
    """Written answers; an item that leaves no room for one in the model's context is not asked, and not answered."""
    options = task.generation
    assert subject.policy is not None
    seed_sampling(task.seed)
    asked = [Prompt(item.prompt, item.place) for item in items]
    room = (context_of(subject.policy.causal) or sys.maxsize) - options.max_new_tokens
    fits = [len(ids) <= room for ids in all_prompt_ids(subject.tokenizer, asked)]
    written = complete(
        subject.policy.causal,
        subject.tokenizer,
        [prompt for prompt, fit in zip(asked, fits, strict=True) if fit for _ in range(options.samples)],
        max_new_tokens=options.max_new_tokens,
        batch_size=subject.batch_size,
        temperature=options.temperature,
        stop=options.stop,
        poll=subject.poll,
    )
    total = sum(fits) * options.samples
    shown = track(
        written, task.task, total, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    )
    texts = iter([text for _, text, _ in sorted(shown)])
    extract = extractor(task.extract)
    replies = []
    for item, fit in zip(items, fits, strict=True):
        first, *more = (next(texts) if fit else "" for _ in range(options.samples))
        answered = Answered(
            extract(first),
            item.references,
            first,
            item.row,
            item.group,
            samples=tuple(extract(each) for each in more),
        )
        replies.append(Reply(item, answered, cut=not fit))
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
