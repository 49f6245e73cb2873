"""The door to `evaluate`: our metrics as its classes, and metrics of the hub. It takes seconds to import, so only here.

`evaluate` has no metric in its package: `evaluate.load` fetches each from a hub, as code.
"""

import difflib
from collections.abc import Sequence
from typing import Any

from tunekit.errors import MissingEnvironment, RecipeError
from tunekit.evals.metrics.metric import METRICS, Answered, Metric

HUB = "hub:"  # before the name of a metric of the hub, in a task


def as_evaluate(name: str) -> Any:
    """Our metric `name` as an `evaluate.Metric`; its result is `{name: value}`, NaN where no item counts.

    `compute(predictions=, references=)` takes a text or a list of texts as the reference of each prediction, and
    `groups=` and `rows=` for the metrics that need them. Raises `RecipeError` for a name that is none.
    """
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(f"{name} is no metric of tunekit{guess}", f"Give one of {', '.join(METRICS)}.")
    import datasets
    import evaluate

    text = datasets.Value("string")
    several = datasets.Sequence(text)
    description = (METRICS[name].of_item or METRICS[name].of_set).__doc__ or name

    class Registered(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=description,
                citation="",
                features=[
                    datasets.Features({"predictions": text, "references": several}),
                    datasets.Features({"predictions": text, "references": text}),
                ],
            )

        def _compute(
            self,
            predictions: list[str],
            references: Sequence[str | list[str]],
            groups: Sequence[str] | None = None,
            rows: Sequence[dict[str, Any]] | None = None,
        ) -> dict[str, float]:
            groups, rows = groups or [""] * len(predictions), rows or [{}] * len(predictions)
            given = zip(predictions, references, groups, rows, strict=True)
            return {name: value_of(name, [_answered(*each) for each in given])}

    Registered.__name__ = name  # what `evaluate` calls it
    # In memory: without it, predictions are written to the user's cache.
    return Registered(config_name=name, keep_in_memory=True)


def _answered(prediction: str, references: str | list[str], group: str, row: dict[str, Any]) -> Answered:
    several = (references,) if isinstance(references, str) else tuple(references)
    return Answered(prediction, several, row=row, group=group)


def value_of(name: str, answers: Sequence[Answered]) -> float:
    """The metric `name` of all answers."""
    metric = METRICS[name]
    if metric.of_set is not None:
        return metric.of_set(answers)
    assert metric.of_item is not None
    values = [value for each in answers if (value := metric.of_item(each)) is not None]
    return sum(values) / len(values) if values else float("nan")


def register(name: str, loaded: Any) -> None:
    """Makes a metric of `evaluate` one that tasks can name; its first figure counts, of the first reference of each."""

    def of_set(answers: Sequence[Answered]) -> float:
        predictions = [each.prediction for each in answers]
        found = loaded.compute(predictions=predictions, references=[each.references[0] for each in answers])
        return next(float(value) for value in found.values() if isinstance(value, int | float))

    METRICS[name] = Metric(name, of_set=of_set)


def hub_metric(name: str) -> Any:
    """The metric `name` of the hub, or of a local script, as `evaluate.load` gives it: it is code, which is run.

    Raises `MissingEnvironment` where it cannot be reached, or needs a package that is not there.
    """
    import evaluate

    try:
        return evaluate.load(name)
    except ImportError as error:
        raise MissingEnvironment(f"metric {name} of the hub: {error}") from error
    except (OSError, ValueError) as error:
        raise MissingEnvironment(
            f"metric {name} of the hub cannot be loaded: {error}",
            f"Connect to the network, or take a metric of tunekit: {', '.join(METRICS)}.",
        ) from error
