"""Tasks and gates of a training run: measured before and after, compared item by item, checked at the end."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunekit.data.tokenise import Reading
from tunekit.errors import RecipeError
from tunekit.evals.answers import Subject
from tunekit.evals.gates import Gate, check, failure, parse
from tunekit.evals.metrics.hub import HUB
from tunekit.evals.score import run_task
from tunekit.evals.statistics import said
from tunekit.evals.task import FoundTask, find_task
from tunekit.models.policy import Policy
from tunekit.recipe.schema import Recipe
from tunekit.recipe.stage_rules import MEASURED, WATCHED
from tunekit.report.facts import read_facts
from tunekit.stages.base import Base
from tunekit.stages.compare import differences
from tunekit.stages.evaluate import add_leakage, kept, shown
from tunekit.train.engine import Engine
from tunekit.train.sharding import gathered
from tunekit.train.training import Evaluate

log = logging.getLogger("tunekit")


def find(recipe: Recipe) -> list[FoundTask]:
    """The tasks of a recipe. Raises `RecipeError` for one that is not there, and for a gate that could never pass."""
    found = [find_task(name) for name in recipe.eval.tasks]
    for each in found:
        if each.task.kind == "preference":
            raise RecipeError(f"eval.tasks: {each.task.task} is for reward models", "Measure one with tunekit eval.")
        if each.task.prepare is not None or any(name.startswith(HUB) for name in each.task.metrics):
            raise RecipeError(
                f"eval.tasks: {each.file} names code (prepare, or a metric of a hub), which a recipe does not run",
                "Measure it with tunekit eval --allow-code.",
            )
    gates_of(recipe, found)
    return found


def gates_of(recipe: Recipe, tasks: Sequence[FoundTask]) -> list[Gate]:
    """The gates of a recipe. Raises `RecipeError` where one is about a figure that the run will not have."""
    stage = recipe.stage
    figures = [
        *MEASURED[stage],
        *WATCHED[stage],
        *(f"eval_{name}" for name in recipe.eval.metrics),
        "seconds",
        "tokens_per_second",
    ]
    figures += [f"{each.task.task}.{metric}" for each in tasks for metric in each.task.metrics]
    gates = recipe.gate or {}
    for name in gates:
        if not any(name == figure or (name.startswith(figure + ".") and "." in figure) for figure in figures):
            raise RecipeError(
                f"gate: {name}: the run will have no such figure; it will have {', '.join(figures)}",
                "Add the task to eval.tasks, or correct the name.",
            )
    return [parse(name, condition) for name, condition in gates.items()]


def measure(
    tasks: Sequence[FoundTask],
    recipe: Recipe,
    policy: Policy,
    base: Base,
    folder: Path,
    when: str,
    training: Sequence[Reading] = (),
) -> dict[str, Any]:
    """The result of each task; answers go to `items/TASK.WHEN.jsonl`, and its items are looked for in `training`."""
    subject = Subject(policy, base.tokenizer, recipe.eval.per_device_eval_batch_size)
    results, found = {}, []
    for each in tasks:
        name = each.task.task
        log.info("task %s, %s training", name, when)
        found.append(run_task(each, subject, recipe.eval.task_limit))
        results[name] = kept(found[-1], folder, f".{when}")
        for metric, score in results[name]["scores"].items():
            log.info("  %s %s (%s)", metric, *shown(score)[:2])
    add_leakage(results, found, training)
    return results


def beside(
    evaluate: Evaluate, tasks: Sequence[FoundTask], recipe: Recipe, policy: Policy, base: Base, engine: Engine
) -> Evaluate:
    """An evaluation that also measures the tasks: their scores stand in `metrics.jsonl` as `TASK.METRIC`."""

    def both(poll: Callable[[], None]) -> dict[str, float]:
        values = evaluate(poll)
        batch_size = recipe.eval.per_device_eval_batch_size
        subject = Subject(policy, base.tokenizer, batch_size, poll=engine.by_itself(poll))

        def measured() -> dict[str, float]:
            found = {each.task.task: run_task(each, subject, recipe.eval.task_limit).scores for each in tasks}
            return {f"{task}.{metric}": each.value for task, scores in found.items() for metric, each in scores.items()}

        with gathered(policy):
            return values | engine.ranks.from_main(measured)

    return both


def change(before: dict[str, Any], after: dict[str, Any], folder: Path) -> dict[str, Any]:
    """For each task and metric of items, what training changed, with its interval; said aloud.

    Where the answers before training are not in `folder` (the run began in another), nothing can be compared.
    """
    facts = read_facts(folder)
    found: dict[str, Any] = {}
    for name, task in after.items():
        first = facts.items(before.get(name, {}))
        if not first:
            log.warning("%s: its answers before training are not here: no comparison by item", name)
            continue
        changed = differences(first, facts.items(task), task["scores"])
        found[name] = {metric: difference.as_dict() for metric, difference in changed.items()}
        for metric, difference in changed.items():
            log.info("%s.%s: %s", name, metric, said(difference, task["scores"][metric]["better"]))
    return found


def check_gates(recipe: Recipe, tasks: Sequence[FoundTask], result: dict[str, Any]) -> None:
    """Writes the verdicts into `result`. Raises `GateFailed` where one is not passed."""
    gates = gates_of(recipe, tasks)
    if not gates:
        return
    verdicts = check(gates, {key: value for key, value in result.items() if key != "exit_code"})
    result["gates"] = [each.as_dict() for each in verdicts]
    for each in verdicts:
        log.log(
            logging.INFO if each.passed else logging.ERROR, "gate %s %s: %s", each.name, each.condition, each.reason
        )
    if not all(each.passed for each in verdicts):
        raise failure(verdicts)
