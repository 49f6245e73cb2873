"""The facts of a run as one page of HTML that asks for nothing: style and charts are in it, and no script."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from tunekit.report.charts import lines, shown, whiskers
from tunekit.report.facts import MAX_ITEMS, Facts

CURVES = {
    "Loss": {"training": "loss", "held out": "eval_loss"},
    "Gradient norm": {"norm": "grad_norm"},
    "Learning rate": {"rate": "lr"},
}
_PAGE = Environment(loader=PackageLoader("tunekit.report", ""), autoescape=True, trim_blocks=True).get_template(
    "page.html.j2"
)


@dataclass(frozen=True)
class Chart:
    title: str
    names: Sequence[str]
    svg: Markup


@dataclass(frozen=True)
class Grid:
    """A table; a cell is text or `{"text", "good"}`."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""


@dataclass(frozen=True)
class Answers:
    title: str
    texts: Sequence[tuple[str, str]]


@dataclass
class Part:
    """A section of the page; one with nothing in it is left out."""

    title: str
    note: str = ""
    charts: list[Chart] = field(default_factory=list)
    tables: list[Grid] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)
    folded: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.charts or self.tables or self.answers or self.folded)


def page(facts: Facts) -> str:
    """The whole report of a run."""
    result = facts.result
    code = result.get("exit_code")
    failure = None
    if code not in (0, None):
        failure = {"title": f"{result.get('status', 'failed')}: exit code {code}", "text": result.get("error", "")}
    sections = [_gates(facts), _scores(facts), _curves(facts), _data(facts), _answers(facts), _behind(facts)]
    model = _model(facts)
    return html(
        title=facts.name,
        subtitle=" · ".join(each for each in (str(result.get("stage", "run")), model) if each),
        failure=failure,
        missing=facts.missing,
        figures=_figures(facts),
        sections=sections,
    )


def html(*, sections: Sequence[Part], **content: Any) -> str:
    """A page of sections, those with nothing in them left out."""
    whole = {"failure": None, "missing": [], "figures": [], "subtitle": ""} | content
    return _PAGE.render(sections=[each for each in sections if not each.is_empty], **whole)


def _model(facts: Facts) -> str:
    base = facts.manifest.get("base_model") or facts.result.get("model") or {}
    return str(base.get("name", ""))


def _figures(facts: Facts) -> list[tuple[str, str]]:
    result = facts.result
    found = [("status", str(result.get("status", "unknown")))]
    for key, label in (("steps", "steps"), ("tokens", "tokens"), ("trained_tokens", "trained tokens")):
        if result.get(key):
            found.append((label, f"{result[key]:,}"))
    if result.get("tokens_per_second"):
        found.append(("tokens a second", f"{result['tokens_per_second']:,.0f}"))
    if result.get("seconds"):
        found.append(("in all", duration(result["seconds"])))
    return found


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _gates(facts: Facts) -> Part:
    words = {True: "passed", False: "failed"}
    rows = [
        (f"{each['name']} {each['condition']}", {"text": words[each["passed"]], "good": each["passed"]},
         each["reason"])
        for each in facts.result.get("gates") or []
    ]  # fmt: skip
    return Part("Gates", tables=[Grid(("gate", "", "figure"), rows)] if rows else [])


def _scores(facts: Facts) -> Part:
    """Held-out figures and tasks, before and after; intervals as whiskers."""
    part = Part("Scores")
    before, after = facts.result.get("before") or {}, facts.result.get("after") or {}
    rows = [(name, shown(before[name]) if name in before else "", shown(value)) for name, value in after.items()
            if isinstance(value, int | float)]  # fmt: skip
    if rows:
        part.tables.append(Grid(("held-out rows", "before", "after"), rows))
    times, change = facts.tasks, (facts.result.get("tasks") or {}).get("change") or {}
    bars, cells = [], []
    for task, metric in _measured(times):
        found = {when: results[task]["scores"][metric] for when, results in times.items()}
        bars += [
            (f"{task} {metric}", when if len(found) > 1 else "", score["value"], score["low"], score["high"])
            for when, score in found.items()
            if None not in (score["value"], score.get("low"), score.get("high")) and score["high"] <= 1
        ]
        cells.append((f"{task} {metric}", *(interval(score) for score in found.values()),
                      *([_change(change.get(task, {}).get(metric))] if change else []),
                      str(next(iter(found.values()))["n"])))  # fmt: skip
    if cells:
        names = list(times)
        part.charts.append(Chart("Shares, with their 95 % intervals", names, whiskers("scores", bars)))
        part.tables.append(Grid(("task", *names, *(["change"] if change else []), "items"), cells))
    return part


def _measured(times: Mapping[str, Any]) -> list[tuple[str, str]]:
    last = times.get("after") or times.get("measured") or {}
    return [(task, metric) for task, result in last.items() for metric in result["scores"]]


def interval(score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return "none"
    if score.get("low") is None:
        return shown(score["value"])
    return f"{shown(score['value'])} [{shown(score['low'])}, {shown(score['high'])}]"


def _change(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    return f"{value:+.3g} [{low:.3g}, {high:.3g}], p {difference['p_value']:.2g}"


def _curves(facts: Facts) -> Part:
    part = Part("Training")
    for title, keys in CURVES.items():
        series = {name: points for name, key in keys.items() if (points := facts.series(key))}
        if svg := lines(title, series):
            part.charts.append(Chart(title, list(series), svg))
    speed = [(row["step"], row["num_tokens"] / row["seconds"]) for row in facts.metrics if row.get("seconds")]
    if svg := lines("Tokens a second", {"speed": speed}):
        part.charts.append(Chart("Tokens a second", ["speed"], svg))
    tasks = sorted({key for row in facts.metrics for key in row if "." in key})
    if svg := lines("Tasks", {key: facts.series(key) for key in tasks[:4]}):
        part.charts.append(Chart("Tasks", tasks[:4], svg))
    return part


def _data(facts: Facts) -> Part:
    data, part = facts.manifest.get("data") or {}, Part("Data")
    rows = []
    for name, label in (("train", "training"), ("held_out", "held out")):
        if found := data.get(name):
            share = f"{found['trained']:,} ({found['trained'] / found['tokens']:.0%})"
            lengths = found["lengths"]
            counts = (found["rows"], found["tokens"], lengths["median"], lengths["max"], found["dropped"])
            rows.append((label, *(f"{n:,}" for n in counts), f"{found['answers_cut']:,}", share))
    if rows:
        head = ("", "rows", "tokens", "median", "longest", "dropped", "answers cut", "trained tokens")
        part.tables.append(Grid(head, rows))
    overlap = data.get("overlap") or {}
    found_rows = [("rejected rows", data.get("rejected")), ("copies", overlap.get("duplicates")),
              ("held-out rows that are training rows", overlap.get("exact")),
              ("held-out rows much like training rows", overlap.get("ngram"))]  # fmt: skip
    part.note = ", ".join(f"{count:,} {label}" for label, count in found_rows if count)
    sources = facts.result.get("sources") or []
    if len(sources) > 1:
        total = sum(each["trained_tokens"] for each in sources) or 1
        part.tables.append(Grid(("source", "trained tokens", "share"), [
            (each["path"], f"{each['trained_tokens']:,}", f"{each['trained_tokens'] / total:.1%}") for each in sources
        ]))  # fmt: skip
    return part


def _answers(facts: Facts) -> Part:
    part = Part("Answers")
    if sample := facts.result.get("sample"):
        texts = [(name, str(sample.get(name) or "")) for name in ("before", "after", "reference")]
        part.answers.append(Answers(_asked(sample), [each for each in texts if each[1]]))
    times = facts.tasks
    for task in list(next(iter(times.values()), {})):
        lines_of = {when: facts.items(results[task]) for when, results in times.items() if task in results}
        for same in list(zip(*lines_of.values(), strict=False))[:MAX_ITEMS]:
            said = [
                (when, line.get("completion") or line.get("answer", ""))
                for when, line in zip(lines_of, same, strict=True)
            ]
            wanted = " / ".join(same[0].get("references", []))
            texts = [*said, *([("reference", wanted)] if wanted else [])]
            part.answers.append(Answers(f"{task}: {_asked(same[0])}", [each for each in texts if each[1]]))
    return part


def _asked(line: Mapping[str, Any]) -> str:
    prompt = line.get("prompt", "")
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    return text if len(text) <= 300 else text[:300] + " ..."


def _behind(facts: Facts) -> Part:
    part = Part("Behind it")
    versions = facts.manifest.get("versions") or {}
    git = facts.manifest.get("git") or {}
    rows = [*versions.items()]
    if git:
        rows.append(("git", git["commit"][:12] + (" (with changes)" if git.get("dirty") else "")))
    if rows:
        part.tables.append(Grid(("software", "version"), rows))
    if facts.recipe:
        part.folded.append(("recipe.yaml", facts.recipe))
    if facts.manifest:
        part.folded.append(("manifest.json", json.dumps(facts.manifest, indent=1, ensure_ascii=False)))
    return part
