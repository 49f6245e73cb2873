"""What pages are made of, and the page around it: HTML that asks for nothing, with its style in it and no script."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from tunekit.report.charts import Curves, finite, lines, sampled, shown

_PAGE = Environment(
    loader=PackageLoader("tunekit.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
).get_template("page.html.j2")
# What no page may hold: control characters, halves of a surrogate pair, and what turns the direction of text.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Grid:
    """A table; a cell is text or `{"text", "good"}`."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Chart:
    """`values`: the numbers behind it, where no other table has them."""

    title: str
    names: Sequence[str]
    svg: Markup
    values: Grid | None = None


@dataclass(frozen=True)
class Answers:
    """What was answered to one prompt, side by side."""

    title: str
    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Folded:
    """What is there to be opened: a table, answers or a text."""

    title: str
    tables: Sequence[Grid] = ()
    answers: Sequence[Answers] = ()
    text: str = ""


@dataclass
class Part:
    """A section of the page; one with nothing in it is left out."""

    title: str
    notes: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Grid] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)
    folded: list[Folded] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.notes or self.charts or self.tables or self.answers or self.folded)

    def add_table(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, where it has rows."""
        if rows:
            self.tables.append(Grid(head, rows))

    def add_chart(self, title: str, names: Sequence[str], svg: Markup, values: Grid | None = None) -> None:
        """A chart, where there was something to draw."""
        if svg:
            self.charts.append(Chart(title, names, svg, values))

    def add_curves(self, title: str, series: Curves) -> None:
        """Curves over steps with some of their values as a table."""
        series = finite(series)
        steps = sorted({step for points in series.values() for step, _ in sampled(points)})
        at = [dict(points) for points in series.values()]
        rows = [(f"{x:,g}", *(shown(values[x]) if x in values else "" for values in at)) for x in steps]
        self.add_chart(title, list(series), lines(title, series), Grid(("step", *series), rows))


def html(*, sections: Sequence[Part], **content: Any) -> str:
    """A page of sections, those with nothing in them left out."""
    whole = {"failure": None, "missing": [], "figures": [], "subtitle": ""} | content
    page = _PAGE.render(sections=[each for each in sections if not each.is_empty], **whole)
    return _UNPRINTABLE.sub("\ufffd", page.replace("\r\n", "\n"))
