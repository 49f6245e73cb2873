"""Charts as inline SVG: no script, no file beside the page, colours from its style sheet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 84, 12, 14, 30
COLUMNS = 300  # of a long curve: in each the least and the greatest value stay, so that no spike is lost
Point = tuple[float, float]


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1
        return self.begin + (value - self.low) / span * (self.end - self.begin)


def reduced(points: Sequence[Point], columns: int = COLUMNS) -> list[Point]:
    """The points, or of many the first, the least, the greatest and the last one in each of `columns` parts."""
    if len(points) <= 4 * columns:
        return list(points)
    kept: list[Point] = []
    for column in range(columns):
        part = points[column * len(points) // columns : (column + 1) * len(points) // columns]
        chosen = {part[0], min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1]), part[-1]}
        kept += sorted(chosen)
    return kept


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within a range."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(title: str, series: Mapping[str, Sequence[Point]]) -> Markup:
    """Curves over steps; values that are no numbers are gaps. Empty where there is nothing to draw."""
    finite = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return Markup("")
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    across = _Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = _Scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    parts = [_grid(across, up)]
    for number, (name, points) in enumerate(finite.items()):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in reduced(points))
        last = points[-1]
        label = f"{name}: {shown(points[0][1])} at step {points[0][0]:g}, {shown(last[1])} at step {last[0]:g}"
        if len(points) == 1:
            parts.append(_dot(across(last[0]), up(last[1]), number, label))
        else:
            parts.append(f'<polyline class="line s{number}" points="{path}"><title>{escape(label)}</title></polyline>')
    names = ", ".join(finite)
    return _svg(f"{title}: {names}, steps {min(xs):g} to {max(xs):g}", parts, HEIGHT)


def whiskers(title: str, rows: Sequence[tuple[str, str, float, float, float]]) -> Markup:
    """A dot with its interval for each `(label, series, value, low, high)`; series are told apart by colour."""
    rows = [row for row in rows if all(isinstance(value, int | float) and math.isfinite(value) for value in row[2:])]
    if not rows:
        return Markup("")
    names = list(dict.fromkeys(row[1] for row in rows))
    height = TOP + 22 * len(rows) + BOTTOM
    low, high = min(row[3] for row in rows), max(row[4] for row in rows)
    across = _Scale(low, high, 260, WIDTH - RIGHT)
    parts = [
        f'<line class="grid" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        f'<text x="{across(x):.1f}" y="{height - 8}" text-anchor="middle">{shown(x)}</text>'
        for x in ticks(low, high)
    ]
    for number, (label, name, value, least, most) in enumerate(rows):
        y = TOP + 11 + 22 * number
        said = f"{label} {name}: {shown(value)} [{shown(least)}, {shown(most)}]"
        style = f"s{names.index(name)}"
        parts += [
            f'<text x="252" y="{y + 4}" text-anchor="end">{escape(f"{label} {name}".strip())}</text>',
            f'<line class="line {style}" x1="{across(least):.1f}" x2="{across(most):.1f}" y1="{y}" y2="{y}"/>',
            _dot(across(value), y, names.index(name), said),
        ]
    return _svg(title, parts, height)


def _grid(across: _Scale, up: _Scale) -> str:
    parts = []
    for y in ticks(up.low, up.high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{shown(y)}</text>')
    for x in ticks(across.low, across.high):
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{x:g}</text>')
    return "".join(parts)


def _dot(x: float, y: float, number: int, label: str) -> str:
    return f'<circle class="dot s{number}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(label)}</title></circle>'


def _svg(label: str, parts: Sequence[str], height: int) -> Markup:
    inner = "".join(parts)
    return Markup(  # every text in it went through `escape`
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {height}">{inner}</svg>'
    )


def shown(value: float) -> str:
    """A number for people: four digits."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
