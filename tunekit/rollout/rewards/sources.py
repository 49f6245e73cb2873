"""The rewards of a recipe, each ready to judge answers."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tunekit.data.rows import Prompt
from tunekit.errors import DataError, RecipeError
from tunekit.evals.code import load_function
from tunekit.models.reward import Classifier, load_classifier, load_reward_model
from tunekit.rollout.rewards.functions import MAKERS, NEEDS_ANSWER, of_user
from tunekit.rollout.samples import Response

log = logging.getLogger("tunekit")

KEYS = ("extract", "pattern", "target", "schema_path")


class Model(Protocol):
    """`rewards` of rendered texts, in their order."""

    def rewards(self, texts: Sequence[str], poll: Callable[[], None]) -> list[float]: ...


@dataclass(frozen=True)
class Source:
    """One reward: `one` judges an answer, or `several` many together; `needs_answer` is that of the row."""

    name: str
    weight: float
    one: Callable[[Response], Any] | None = None
    several: Callable[[Sequence[Response], Callable[[], None]], list[float]] | None = None
    needs_answer: bool = False


def make_rewards(
    settings: Sequence[Mapping[str, Any]],
    *,
    allow_code: bool,
    model: Callable[[str], Model] = load_reward_model,
) -> list[Source]:
    """The rewards that a recipe names, each with the keys of `recipe.rewards.Reward`; `model` loads a reward model.

    Raises `RecipeError` where one cannot be made, or is code that may not run.
    """
    made = [_source(each, allow_code, model) for each in settings]
    names = [each.name for each in made]
    return [
        each if names.count(each.name) == 1 else Source(f"{each.name}_{i}", *_rest(each)) for i, each in enumerate(made)
    ]


def _rest(source: Source) -> tuple[Any, ...]:
    return source.weight, source.one, source.several, source.needs_answer


def _source(given: Mapping[str, Any], allow_code: bool, model: Callable[[str], Model]) -> Source:
    weight, name = float(given["weight"]), given["function"]
    if given["model"] is not None:
        short = Path(given["model"]).name
        if given["label"] is not None:
            return Source(short, weight, several=_classified(load_classifier(given["model"]), given["label"]))
        judge = model(given["model"])
        return Source(short, weight, several=lambda rs, poll: judge.rewards([each.rendered for each in rs], poll))
    if name in MAKERS:
        keys = {key: given[key] for key in KEYS if given.get(key) is not None}
        return Source(name, weight, one=MAKERS[name](**keys), needs_answer=name in NEEDS_ANSWER)
    path, _, function = name.rpartition(":")
    if not allow_code:
        raise RecipeError(f"rewards: {name} is code", "Read it, and give --allow-code if it may run.")
    loaded = load_function(Path(path), function, "rewards")
    log.info("rewards: %s (sha256 %s)", name, hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return Source(function, weight, one=of_user(loaded, name))


def _classified(classifier: Classifier, label: str) -> Callable[[Sequence[Response], Callable[[], None]], list[float]]:
    """The probability of `label`, of the answers alone."""
    column = classifier.column(label)

    def several(responses: Sequence[Response], poll: Callable[[], None]) -> list[float]:
        found: NDArray[np.float64] = classifier.probabilities([each.text for each in responses], poll)
        return [float(value) for value in found[:, column]]

    return several


def check_prompts(rewards: Sequence[Source], prompts: Sequence[Prompt]) -> None:
    """Raises `DataError` where a reward compares answers with those of the rows, and a row has none."""
    asking = [each.name for each in rewards if each.needs_answer]
    missing = next((each for each in prompts if each.answer is None), None)
    if asking and missing is not None:
        raise DataError(
            f"rewards: {asking[0]} compares answers with those of the data, and {missing.source} has none",
            "Name its column beside the path, such as columns: {prompt: question, answer: solution}.",
        )
