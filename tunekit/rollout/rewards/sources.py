"""The rewards of a recipe, each ready to judge answers."""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunekit.data.rows import Prompt
from tunekit.errors import DataError, RecipeError
from tunekit.evals.code import load_function
from tunekit.models.reward import load_classifier, load_reward_model
from tunekit.rollout.rewards.functions import MAKERS, NEEDS_ANSWER, of_user
from tunekit.rollout.rewards.judges import Judging, Model, by_label, by_model
from tunekit.rollout.samples import Response

log = logging.getLogger("tunekit")

KEYS = ("extract", "pattern", "target", "schema_path")
CALLS = 20  # over which failures are counted


@dataclass
class Record:
    """Of each of the last calls how many answers failed and how many there were; the kinds that were warned of."""

    calls: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=CALLS))
    warned: set[str] = field(default_factory=set)

    def add(self, failed: int, seen: int) -> None:
        self.calls.append((failed, seen))

    @property
    def failed(self) -> int:
        return sum(failed for failed, _ in self.calls)

    @property
    def seen(self) -> int:
        return sum(seen for _, seen in self.calls)


@dataclass(frozen=True)
class Source:
    """One reward: `one` judges an answer, or `several` many together; `needs_answer` is that of the row."""

    name: str
    weight: float
    one: Callable[[Response], Any] | None = None
    several: Judging | None = None
    needs_answer: bool = False
    record: Record = field(default_factory=Record)


def make_rewards(
    settings: Sequence[Mapping[str, Any]],
    *,
    allow_code: bool,
    model: Callable[[str], Model] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "auto",
) -> list[Source]:
    """The rewards that a recipe names, each with the keys of `recipe.rewards.Reward`.

    model: loads a reward model, None: as one of its own in `dtype`, which is the precision of classifiers too
    tokenizer: that of the policy; a reward model with another one reads answers in its own chat template
    Raises `RecipeError` where one cannot be made, or is code that may not run.
    """
    load = model or partial(load_reward_model, dtype=dtype)
    made = [_model(each, load, tokenizer, dtype) if each["model"] else _function(each, allow_code) for each in settings]
    names = [each.name for each in made]
    return [
        each if names.count(each.name) == 1 else replace(each, name=f"{each.name}_{i}") for i, each in enumerate(made)
    ]


def _model(
    given: Mapping[str, Any], load: Callable[[str], Model], tokenizer: PreTrainedTokenizerBase | None, dtype: str
) -> Source:
    name, label, weight = given["model"], given["label"], float(given["weight"])
    if label is not None:
        return Source(Path(name).name, weight, several=by_label(load_classifier(name, dtype), label))
    return Source(Path(name).name, weight, several=by_model(load(name), name, tokenizer))


def _function(given: Mapping[str, Any], allow_code: bool) -> Source:
    name, weight = given["function"], float(given["weight"])
    if name in MAKERS:
        keys = {key: given[key] for key in KEYS if given.get(key) is not None}
        return Source(name, weight, one=MAKERS[name](**keys), needs_answer=name in NEEDS_ANSWER)
    path, _, function = name.rpartition(":")
    if not allow_code:
        raise RecipeError(f"rewards: {name} is code", "Read it, and give --allow-code if it may run.")
    loaded = load_function(Path(path), function, "rewards")
    log.info("rewards: %s (sha256 %s)", name, hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return Source(function, weight, one=of_user(loaded, name))


def check_prompts(rewards: Sequence[Source], prompts: Sequence[Prompt]) -> None:
    """Raises `DataError` where a reward compares answers with those of the rows, and a row has none."""
    asking = [each.name for each in rewards if each.needs_answer]
    missing = next((each for each in prompts if each.answer is None), None)
    if asking and missing is not None:
        raise DataError(
            f"rewards: {asking[0]} compares answers with those of the data, and {missing.source} has none",
            "Name its column beside the path, such as columns: {prompt: question, answer: solution}.",
        )
