"""What a pipeline did, or would do, as text for people."""

from typing import Any

from rich.table import Table

from tunekit.stages.pipeline import Step
from tunekit.stages.present import rendered

FIGURES = ("eval_accuracy", "eval_reward", "eval_kl")  # of a stage, beside the one that decides which model is best


def plan_table(steps: list[Step]) -> str:
    table = Table("stage", "would", "because", "output")
    for step in steps:
        table.add_row(step.stage.name, step.action, step.reason, step.stage.resolved.recipe.output_dir)
    return rendered([table])


def summary(result: dict[str, Any]) -> str:
    """A line for each stage with its figures before and after, and how the pipeline ended."""
    table = Table("stage", "status", "seconds", "before -> after", "output")
    for stage in result["stages"]:
        seconds = f"{stage['seconds']:.0f}" if stage["seconds"] else ""
        table.add_row(stage["name"], stage["status"], seconds, _figures(stage), stage["output_dir"])
    end = f"{result['status']}: {result['seconds']:.0f} s in all"
    if "failed" in result:
        end += f"; {result['failed']} ended with exit code {result['exit_code']}, run again to go on there"
    return rendered([table, end])


def _figures(stage: dict[str, Any]) -> str:
    before, after = stage["before"] or {}, stage["after"] or {}
    names = dict.fromkeys(name for name in (stage["main"], *FIGURES) if name in after)
    return "\n".join(f"{name.removeprefix('eval_')} {_number(before.get(name))} -> {after[name]:.4g}" for name in names)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"
