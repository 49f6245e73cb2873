"""Gates: figures that a result must reach, so that a bad model turns a pipeline red.

A gate is the name of a figure and a condition: `gsm8k.accuracy`, `>= before - 0.01`. A figure that is missing, is no
number, or has nothing to be compared with never passes.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

from tunekit.errors import GateFailed, RecipeError
from tunekit.recipe.types import CONDITION

_GATE = re.compile(r"\s*(?P<name>[^<>=\s](?:[^<>=]*[^<>=\s])?)\s*(?P<condition>[<>=].*)")  # a group may be two words
_COMPARE = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
}
ACCEPTED = (
    "A gate is a figure and a condition: eval_loss < 1.9, gsm8k.accuracy >= 0.05, blimp.accuracy >= before - 0.01."
)


@dataclass(frozen=True)
class Gate:
    """`name` must compare by `operator` with a number, or with that figure `before` or of a `baseline`, changed."""

    name: str
    condition: str
    operator: str
    reference: str | None
    sign: str
    by: float


@dataclass(frozen=True)
class Verdict:
    """What became of a gate: `value` against `bound` (None: there is none), its interval, and the reason in words."""

    name: str
    condition: str
    passed: bool
    reason: str
    value: float | None = None
    bound: float | None = None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse(name: str, condition: str) -> Gate:
    """Raises `RecipeError` for what is no condition."""
    found = re.fullmatch(CONDITION, condition)
    operator, whole, reference, changed = found.groups() if found else ("", "nan", None, None)
    sign, by = (changed.strip()[0], changed.strip()[1:]) if changed else ("+", "0" if reference else whole)
    if not math.isfinite(float(by)):
        raise RecipeError(f"gate: {name}: {condition!r} is no condition", ACCEPTED)
    return Gate(name, condition.strip(), operator, reference, sign, float(by))


def parse_line(text: str) -> Gate:
    """A gate in one line: "gsm8k.accuracy >= 0.05"."""
    found = _GATE.fullmatch(text)
    if found is None:
        raise RecipeError(f"gate: {text!r} is no gate", ACCEPTED)
    return parse(found["name"], found["condition"])


def check(gates: Sequence[Gate], result: Mapping[str, Any], baseline: Mapping[str, Any] | None = None) -> list[Verdict]:
    """What becomes of each gate with the figures of a `result.json`, and those of another run."""
    figures = {"after": _figures(result, "after"), "before": _figures(result, "before")}
    figures["baseline"] = {} if baseline is None else _figures(baseline, "after")
    return [_verdict(gate, figures, result, baseline) for gate in gates]


def failure(verdicts: Sequence[Verdict]) -> GateFailed:
    """The error that names each gate that failed."""
    failed = [each for each in verdicts if not each.passed]
    lines = "\n".join(f"  {each.name} {each.condition}: {each.reason}" for each in failed)
    return GateFailed(f"{len(failed)} of {len(verdicts)} gates failed:\n{lines}")


def _figures(result: Mapping[str, Any], when: str) -> dict[str, Mapping[str, Any]]:
    """Each figure by its name, as a score; of a figure that has no interval, the value alone."""
    figures: dict[str, Mapping[str, Any]] = {
        name: {"value": value} for name, value in _mapping(result.get(when)).items()
    }
    if when == "after":
        figures |= {name: {"value": value} for name, value in result.items() if is_number(value)}
        for name, value in _mapping(result.get("reward")).items():  # what a reward model's run says of it
            figures[f"reward.{name}"] = value if isinstance(value, Mapping) else {"value": value}
    for task, measured in _tasks(result, when).items():
        figures |= dict(_scores(task, _mapping(measured)))
    return figures


def _tasks(result: Mapping[str, Any], when: str) -> Mapping[str, Any]:
    tasks = _mapping(result.get("tasks"))
    if "after" in tasks or "before" in tasks:  # of a training run
        return _mapping(tasks.get(when))
    return tasks if when == "after" else {}


def _scores(task: str, measured: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for metric, score in _mapping(measured.get("scores")).items():
        yield f"{task}.{metric}", _mapping(score)
    for metric, groups in _mapping(measured.get("groups")).items():
        for group, score in _mapping(groups).items():
            yield f"{task}.{metric}.{group}", _mapping(score)


def _mapping(value: Any) -> Mapping[str, Any]:
    """What is not where it belongs, in a file that is no result of ours, counts as missing."""
    return value if isinstance(value, Mapping) else {}


def is_number(value: Any) -> TypeGuard[float]:
    """A number of JSON, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _verdict(
    gate: Gate,
    figures: Mapping[str, Mapping[str, Mapping[str, Any]]],
    result: Mapping[str, Any],
    baseline: Mapping[str, Any] | None,
) -> Verdict:
    def failed(reason: str, value: float | None = None) -> Verdict:
        return Verdict(gate.name, gate.condition, False, reason, value)

    if not _ended_well(result):
        return failed(f"the run did not end well: exit code {result['exit_code']}")
    score = figures["after"].get(gate.name)
    if score is None:
        return failed("the result has no such figure" + _near(gate.name, figures["after"]))
    value, low, high = score.get("value"), score.get("low"), score.get("high")
    if not is_number(value) or not math.isfinite(value):
        return failed(f"its value is {value}, which is no number")
    bound, said = gate.by, ""
    if gate.reference is not None:
        if gate.reference == "baseline" and baseline is None:
            return failed("there is no baseline (--baseline OTHER/result.json)", value)
        if gate.reference == "baseline" and baseline is not None and not _ended_well(baseline):
            return failed(f"the baseline did not end well: exit code {baseline['exit_code']}", value)
        if gate.reference == "baseline" and (keys := _asked_otherwise(gate.name, result, baseline or {})):
            return failed(f"the baseline was asked otherwise: {', '.join(keys)}", value)
        other = figures[gate.reference].get(gate.name, {}).get("value")
        if not is_number(other) or not math.isfinite(other):
            return failed(f"{gate.reference} has no such figure" + _near(gate.name, figures[gate.reference]), value)
        bound = {"+": other + gate.by, "-": other - gate.by, "*": other * gate.by}[gate.sign]
        said = f" ({gate.reference} {other:.4g})"
    if math.isclose(value, bound, rel_tol=1e-9, abs_tol=1e-12):
        bound = value  # 0.4 - 0.1 is a little more than 0.3, for a computer
    passed = _COMPARE[gate.operator](value, bound)
    digits = next((number for number in range(4, 17) if f"{value:.{number}g}" != f"{bound:.{number}g}"), 4)
    reason = f"{value:.{digits}g}{_interval(low, high)} is {'' if passed else 'not '}{gate.operator} {bound:.{digits}g}"
    return Verdict(
        gate.name,
        gate.condition,
        passed,
        reason + said + _doubt(gate, passed, bound, low, high),
        value,
        bound,
        low,
        high,
    )


def differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """In which settings two results of a task were asked differently; where the items lie is none, their hash is."""
    first, second = (_mapping(each.get("configuration")) for each in (one, two))
    return [key for key in dict.fromkeys([*first, *second]) if key != "data" and first.get(key) != second.get(key)]


def _asked_otherwise(name: str, result: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """`differing` of the task that a figure is of; nothing where it is of none."""
    mine, theirs = (_tasks(each, "after") for each in (result, baseline))
    task = next((task for task in mine if name.startswith(f"{task}.")), None)
    return differing(_mapping(mine[task]), _mapping(theirs[task])) if task is not None and task in theirs else []


def _ended_well(result: Mapping[str, Any]) -> bool:
    """Whether its figures are those of a whole run; one that failed a gate has them."""
    return result.get("exit_code", 0) in (0, GateFailed.exit_code)


def _interval(low: float | None, high: float | None) -> str:
    return f" [{low:.4g}, {high:.4g}]" if is_number(low) and is_number(high) else ""


def _doubt(gate: Gate, passed: bool, bound: float, low: float | None, high: float | None) -> str:
    """Said of a gate that is passed, where by its interval the figure may as well be on the other side."""
    if not (passed and is_number(low) and is_number(high)):
        return ""
    crosses = {">": low < bound, "<": bound < high}.get(gate.operator[0], low < bound or bound < high)
    return "; passed, but the bound is within the interval" if crosses else ""


def _near(name: str, figures: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, figures, n=3)
    return f"; did you mean {', '.join(near)}?" if near else ""
