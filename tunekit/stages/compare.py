"""`tunekit compare`: runs side by side, with a paired test where they answered the same items."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tunekit.errors import RecipeError
from tunekit.evals.statistics import paired, said
from tunekit.evals.task import LIKELIHOOD_METRICS
from tunekit.recipe.diff import compare
from tunekit.report.facts import Facts, read_facts
from tunekit.report.page import Grid, Part, html, interval
from tunekit.stages.present import rendered
from tunekit.stages.tasks import item_values
from tunekit.train.folder import replace_text

FIGURES = ("exit_code", "steps", "tokens", "trained_tokens", "tokens_per_second", "seconds")


def run(folders: Sequence[str]) -> dict[str, Any]:
    """`{"runs", "figures", "scores", "paired", "recipes", "warnings"}`; the first run is what others are compared with.

    Raises `RecipeError` for fewer than two runs, and what `read_facts` raises.
    """
    if len(folders) < 2:
        raise RecipeError("compare: there is only one run", "Give two or more folders.")
    facts = [read_facts(Path(folder)) for folder in folders]
    first, *others = facts
    warnings: list[str] = []
    tests = {
        str(other.folder): {key: test for key, test in _paired(first, other, warnings).items()} for other in others
    }
    return {
        "runs": list(folders),
        "figures": {key: [each.result.get(key) for each in facts] for key in FIGURES}
        | {
            key: [_after(each).get(key) for each in facts] for key in dict.fromkeys(k for f in facts for k in _after(f))
        },
        "scores": {
            key: [_scores(each).get(key) for each in facts]
            for key in dict.fromkeys(k for f in facts for k in _scores(f))
        },
        "paired": tests,
        "recipes": {
            str(other.folder): compare(str(first.folder), str(other.folder))["differences"]
            for other in others
            if first.recipe and other.recipe
        },
        "warnings": warnings,
    }


def _after(facts: Facts) -> dict[str, Any]:
    return facts.result.get("after") or {}


def _last(facts: Facts) -> dict[str, Any]:
    return facts.tasks.get("after") or facts.tasks.get("measured") or {}


def _scores(facts: Facts) -> dict[str, Any]:
    return {
        f"{task}.{name}": score for task, result in _last(facts).items() for name, score in result["scores"].items()
    }


def _paired(first: Facts, other: Facts, warnings: list[str]) -> dict[str, Any]:
    """For each metric of items that both answered: the difference, and the sentence that says it."""
    tests: dict[str, Any] = {}
    for task, result in _last(other).items():
        against = _last(first).get(task)
        if against is None:
            continue
        if differing := _differing(against["configuration"], result["configuration"]):
            warnings.append(f"{task} was asked differently in {other.folder}: {', '.join(differing)}")
        if not (against.get("items") and result.get("items")):
            continue
        one, two = (
            item_values(each.folder / each_result["items"]) for each, each_result in ((first, against), (other, result))
        )
        for metric, score in result["scores"].items():
            shared = [key for key in two.get(metric, {}) if key in one.get(metric, {})]
            if shared and metric not in LIKELIHOOD_METRICS:
                found = paired([one[metric][key] for key in shared], [two[metric][key] for key in shared], seed=0)
                tests[f"{task}.{metric}"] = found.as_dict() | {"said": said(found, score["better"])}
    return tests


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*one, *two]) if key != "data" and one.get(key) != two.get(key)]


def _rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = [
        (
            key,
            *("" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value) for value in values),
        )
        for key, values in report["figures"].items()
    ]
    scores = [
        (key, *("" if score is None else interval(score) for score in values))
        for key, values in report["scores"].items()
    ]
    return [*rows, *scores]


def render(report: Mapping[str, Any]) -> str:
    """Tables for people."""
    table = Table("", *report["runs"])
    for row in _rows(report):
        table.add_row(*row)
    parts: list[Any] = [table]
    for name, tests in report["paired"].items():
        parts += [f"{name}: {key}: {test['said']}" for key, test in tests.items()]
    for name, differences in report["recipes"].items():
        parts += [f"{name}: {each['key']}: {each['left']} -> {each['right']}" for each in differences]
    return rendered([*parts, *(f"warning: {each}" for each in report["warnings"])])


def write_page(report: Mapping[str, Any], file: str) -> None:
    """The same as a page of HTML."""
    sections = [Part("Side by side", tables=[Grid(("", *report["runs"]), _rows(report))])]
    tests = [(name, key, test["said"]) for name, found in report["paired"].items() for key, test in found.items()]
    sections.append(
        Part(
            "On the same items", tables=[Grid(("run", "score", f"against {report['runs'][0]}"), tests)] if tests else []
        )
    )
    rows = [
        (name, each["key"], str(each["left"]), str(each["right"]))
        for name, found in report["recipes"].items()
        for each in found
    ]
    sections.append(
        Part(
            "What differs in the recipes",
            tables=[Grid(("run", "key", report["runs"][0], "here"), rows)] if rows else [],
        )
    )
    replace_text(Path(file), html(title="Runs side by side", missing=report["warnings"], sections=sections))
