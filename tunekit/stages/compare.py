"""`tunekit compare`: runs side by side, with a paired test where they answered the same items."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tunekit.errors import RecipeError
from tunekit.evals.gates import differing, is_number
from tunekit.evals.statistics import Difference, paired, said
from tunekit.recipe.diff import ABSENT
from tunekit.recipe.diff import compare as compare_recipes
from tunekit.recipe.show import flow
from tunekit.report.charts import COLOURS, shown
from tunekit.report.facts import Facts, Key, read_facts
from tunekit.report.parts import Part, html
from tunekit.report.scores import add_intervals, interval
from tunekit.stages.present import rendered
from tunekit.train.folder import replace_text

FIGURES = ("status", "exit_code", "steps", "tokens", "trained_tokens", "tokens_per_second", "train_seconds", "seconds")
# Of what the manifests hold, the rest follows from the recipe or says how large things are.
FROM_MANIFEST = ("data.train.sha256", "data.held_out.sha256", "base_model.", "versions.", "git.commit")


def run(folders: Sequence[str]) -> dict[str, Any]:
    """`{"runs", "figures", "scores", "paired", "recipes", "warnings"}`; the first run is what others are compared with.

    Raises `RecipeError` for fewer than two runs, and what `read_facts` raises.
    """
    if len(folders) < 2:
        raise RecipeError("compare: there is only one run", "Give two or more folders.")
    facts = [read_facts(Path(folder)) for folder in folders]
    first, *others = facts
    warnings: list[str] = []
    report = {
        "runs": list(folders),
        "figures": _figures(facts),
        "scores": _beside(facts, _scores),
        "paired": {str(other.folder): _paired(first, other, warnings) for other in others},
        "recipes": {str(other.folder): _recipes(first, other, warnings) for other in others},
        "warnings": warnings,
    }
    warnings += [f"{each.folder}: {text}" for each in facts for text in each.missing]
    return report


def _figures(facts: Sequence[Facts]) -> dict[str, list[Any]]:
    """Figures of the runs, and those of their held-out rows, after training and before."""
    before = _beside(facts, lambda each: each.held_out[0])
    return (
        {key: [each.result.get(key) for each in facts] for key in FIGURES}
        | _beside(facts, lambda each: each.held_out[1])
        | {f"{key} before": values for key, values in before.items()}
    )


def _beside(facts: Sequence[Facts], values: Callable[[Facts], Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Each key that a run has with the values of all runs."""
    found = [values(each) for each in facts]
    return {key: [each.get(key) for each in found] for key in dict.fromkeys(key for each in found for key in each)}


def _scores(facts: Facts) -> dict[str, Any]:
    return {
        f"{task}.{name}": score
        for task, result in facts.last_tasks.items()
        for name, score in (result.get("scores") or {}).items()
    }


def _paired(first: Facts, other: Facts, warnings: list[str]) -> dict[str, Any]:
    """For each metric of items that both answered: the difference, and the sentence that says it."""
    tests: dict[str, Any] = {}
    for task, result in other.last_tasks.items():
        against = first.last_tasks.get(task)
        if against is None:
            continue
        if keys := differing(against, result):
            warnings.append(f"{task} was asked differently in {other.folder}: {', '.join(keys)}")
        scores = result.get("scores") or {}
        for metric, found in differences(first.items(against), other.items(result), scores).items():
            better = scores[metric].get("better", "higher")
            tests[f"{task}.{metric}"] = found.as_dict() | {"said": said(found, better)}
    return tests


def differences(
    one: Mapping[Key, Mapping[str, Any]], two: Mapping[Key, Mapping[str, Any]], metrics: Iterable[str]
) -> dict[str, Difference]:
    """For each metric that has a value for each item: the second answers against the first, on the same items."""
    found = {}
    for metric in metrics:
        pairs = [_values(metric, one[key], two[key]) for key in two if key in one]
        if both := [pair for pair in pairs if len(pair) == 2]:
            found[metric] = paired([before for before, _ in both], [after for _, after in both], seed=0)
    return found


def _values(metric: str, *items: Mapping[str, Any]) -> list[float]:
    """The values of `items`, without those that have none."""
    values = [(item.get("scores") or {}).get(metric) for item in items]
    return [float(value) for value in values if is_number(value)]


def _recipes(first: Facts, other: Facts, warnings: list[str]) -> list[dict[str, Any]]:
    """In what the recipes, data, models and versions of two runs differ; nothing where one has no recipe."""
    if not (first.recipe and other.recipe):
        return []
    try:
        differences = compare_recipes(str(first.folder), str(other.folder))["differences"]
    except RecipeError as error:
        warnings.append(str(error))
        return []
    return [each for each in differences if each["left"] != each["right"] and _tells(each["key"])]


def _tells(key: str) -> bool:
    where, colon, fact = key.partition(":")
    return fact.startswith(FROM_MANIFEST) if colon and where == "manifest.json" else key != "output_dir"


def _rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = [
        (key, *map(_cell, values))
        for key, values in report["figures"].items()
        if any(value is not None for value in values)
    ]
    return [*rows, *((key, *map(interval, values)) for key, values in report["scores"].items())]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return shown(value)
    return "" if value is None else f"{value:,}" if is_number(value) else str(value)


def _sides(difference: Mapping[str, Any]) -> tuple[str, str, str]:
    key = difference["key"].removeprefix("manifest.json:")
    left, right = (
        ABSENT if difference[f"{side}_origin"] is None else flow(difference[side]) for side in ("left", "right")
    )
    return (key, left[:12], right[:12]) if key.endswith("sha256") else (key, left, right)


def render(report: Mapping[str, Any]) -> str:
    """Tables for people."""
    table = Table("", *report["runs"])
    for row in _rows(report):
        table.add_row(*row)
    parts: list[Any] = [table]
    for name, tests in report["paired"].items():
        parts += [f"{name}: {key}: {test['said']}" for key, test in tests.items()]
    for name, differences in report["recipes"].items():
        parts += [f"{name}: {key}: {left} -> {right}" for key, left, right in map(_sides, differences)]
    return rendered([*parts, *(f"warning: {each}" for each in report["warnings"])])


def write_page(report: Mapping[str, Any], file: str) -> None:
    """The same as a page of HTML."""
    runs, tests = report["runs"], report["paired"]
    beside, items, recipes = Part("Figures and scores"), Part("On the same items"), Part("What differs")
    bars = [(key, *each) for key, values in report["scores"].items() for each in zip(runs, values, strict=True)]
    if len(runs) <= COLOURS:
        add_intervals(beside, bars, runs)
    beside.add_table(("", *runs), _rows(report))
    items.add_table(
        ("run", "score", f"against {runs[0]}"),
        [(name, key, test["said"]) for name, found in tests.items() for key, test in found.items()],
    )
    recipes.add_table(
        ("run", "key", runs[0], "here"),
        [(name, *_sides(each)) for name, found in report["recipes"].items() for each in found],
    )
    title = "Runs side by side"
    replace_text(Path(file), html(title=title, missing=report["warnings"], sections=[beside, items, recipes]))
