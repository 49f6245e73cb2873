"""The sections of a page about what a model scores, and what it answers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunekit.evals.gates import is_number
from tunekit.report.charts import Interval, ranged, shown, whiskers
from tunekit.report.facts import Facts, Key, is_finite
from tunekit.report.parts import Answers, Folded, Grid, Part

MAX_ITEMS = 5  # of a task, shown with what was answered
MAX_TEXT = 2000  # characters of a text that are shown
SHARES = "Shares, with their 95 % intervals"
Score = Mapping[str, Any]


def scores(facts: Facts) -> Part:
    """Held-out figures and tasks, before and after; intervals as whiskers."""
    part = Part("Scores")
    before, after = facts.held_out
    part.add_table(
        ("held-out rows", "before", "after" if "after" in facts.result else "last"),
        [
            (name, *(shown(each[name]) if is_number(each.get(name)) else "" for each in (before, after)))
            for name in dict.fromkeys([*before, *after])
            if is_number(before.get(name)) or is_number(after.get(name))
        ],
    )
    times, change = facts.tasks, (facts.result.get("tasks") or {}).get("change") or {}
    rows, bars, moved = [], [], []
    for task, metric in _metrics(facts.last_tasks):
        label = f"{task} {metric}"
        found = {when: _score(results, task, metric) for when, results in times.items()}
        bars += [(label, when if len(times) > 1 else "", score) for when, score in found.items()]
        difference = (change.get(task) or {}).get(metric)
        moved += [Interval(label, "", *bounds(difference))] if has_interval(difference) else []
        cells = [interval(score) for score in found.values()] + ([_change(difference)] if change else [])
        rows.append((label, *cells, f"{(list(found.values())[-1] or {}).get('n', 0):,}"))
    add_intervals(part, bars, list(times) if len(times) > 1 else [])
    title = "Change by training, with its 95 % interval"
    part.add_chart(title, [], whiskers(title, moved, zero=True))
    part.add_table(("task", *times, *(["change"] if change else []), "items"), rows)
    for task, result in facts.last_tasks.items():
        part.notes += _leakage(task, result)
        part.folded += _groups(task, times)
        if configuration := result.get("configuration"):
            text = json.dumps(configuration, indent=1, ensure_ascii=False)
            part.folded.append(Folded(f"{task}: how it was asked", text=text))
    return part


def add_intervals(part: Part, bars: Sequence[tuple[str, str, Score | None]], names: Sequence[str]) -> None:
    """A chart of the scores that are shares, `(label, series, score)`, and one for each other that has an interval."""
    charts: dict[str, list[Interval]] = {}
    for label, series, score in bars:
        if has_interval(score):
            value, low, high = bounds(score)
            title = SHARES if low >= 0 and high <= 1 else f"{label}, with its 95 % interval"
            charts.setdefault(title, []).append(Interval(label, series, value, low, high))
    for title, intervals in charts.items():
        part.add_chart(title, names, whiskers(title, intervals))


def interval(score: Score | None) -> str:
    """A score for people; empty where it was not measured."""
    if score is None:
        return ""
    if not is_number(score.get("value")):
        return "none"
    return ranged(*bounds(score)) if has_interval(score) else shown(score["value"])


def has_interval(score: Score | None) -> bool:
    return score is not None and all(is_finite(score.get(key)) for key in ("value", "low", "high"))


def bounds(score: Any) -> tuple[float, float, float]:
    return score["value"], score["low"], score["high"]


def _metrics(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for task, result in results.items():
        for metric in result.get("scores") or {}:
            yield task, metric


def _score(results: Mapping[str, Any], task: str, metric: str) -> Score | None:
    return ((results.get(task) or {}).get("scores") or {}).get(metric)


def _change(difference: Score | None) -> str:
    if difference is None or not has_interval(difference):
        return ""
    p_value = f", p {difference['p_value']:.2g}" if is_number(difference.get("p_value")) else ""
    return ranged(*bounds(difference), sign="+") + p_value


def _leakage(task: str, result: Mapping[str, Any]) -> Iterator[str]:
    found = result.get("leakage") or {}
    if found.get("items"):
        examples = "; ".join(found.get("examples") or [])
        without = (f"{name} {interval(score)}" for name, score in (found.get("scores_without") or {}).items())
        yield (
            f"{task}: {found['items']:,} of {result.get('n', 0):,} items are in the training data"
            + (f", such as {examples}" if examples else "")
            + f". Without them: {', '.join(without) or 'no score'}."
        )
    elif found:
        yield f"{task}: none of the items was found in the training data."


def _groups(task: str, times: Mapping[str, Any]) -> Iterator[Folded]:
    groups = {when: (results.get(task) or {}).get("groups") or {} for when, results in times.items()}
    for metric, last in list(groups.values())[-1].items():
        rows = [
            (
                name,
                *(interval((each.get(metric) or {}).get(name)) for each in groups.values()),
                f"{score.get('n', 0):,}",
            )
            for name, score in last.items()
        ]
        if rows:
            title = f"{task} {metric}: {len(rows)} group{'s' * (len(rows) > 1)}"
            yield Folded(title, [Grid(("group", *times, "items"), rows)])


def answers(facts: Facts) -> Part:
    """What was answered before and after: to a held-out prompt, and to some items of each task."""
    part = Part("Answers")
    if sample := facts.result.get("sample"):
        texts = [(name, _cut(str(sample.get(name) or ""))) for name in ("before", "after", "reference")]
        part.answers.append(Answers(_asked(sample), [each for each in texts if each[1]]))
    for task in facts.last_tasks:
        found = {when: facts.items(results[task]) for when, results in facts.tasks.items() if task in results}
        shared = [key for key in list(found.values())[-1] if all(key in items for items in found.values())]
        shared.sort(key=lambda key: not _moved([items[key] for items in found.values()]))  # what changed comes first
        shown_items = [_item({when: items[key] for when, items in found.items()}, key) for key in shared[:MAX_ITEMS]]
        if shown_items:
            title = f"{task}: {len(shown_items)} of {len(shared):,} items"
            part.folded.append(Folded(title, answers=shown_items))
    return part


def _moved(lines: Sequence[Mapping[str, Any]]) -> bool:
    return any(line.get("scores") != lines[0].get("scores") for line in lines)


def _item(lines: Mapping[str, Mapping[str, Any]], key: Key) -> Answers:
    texts = []
    for when, line in lines.items():
        values = [f"{name} {shown(value)}" for name, value in (line.get("scores") or {}).items() if is_number(value)]
        texts.append((", ".join([when, *values]), _cut(str(line.get("completion") or line.get("answer") or ""))))
    last = list(lines.values())[-1]
    if references := last.get("references"):
        texts.append(("reference", _cut(" / ".join(map(str, references)))))
    return Answers(_asked(last) or str(last.get("place", key[0])).rpartition("/")[2], texts)


def _asked(line: Mapping[str, Any]) -> str:
    """The prompt, of a conversation its last turn."""
    prompt = line.get("prompt") or ""
    if isinstance(prompt, list):
        prompt = prompt[-1].get("content") if isinstance(prompt[-1], dict) else prompt[-1]
    return _cut(str(prompt), 300)


def _cut(text: str, length: int = MAX_TEXT) -> str:
    return text if len(text) <= length else text[:length] + " ..."
