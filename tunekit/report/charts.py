"""Charts as inline SVG: no script, no file beside the page, colours from its style sheet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 68, 26, 14, 30
LABEL, ROW = 22, 16  # heights in a chart of intervals: a name, and an interval under it
COLOURS = 4  # that the style sheet has for series
COLUMNS = 300  # of a long curve: in each the least and the greatest value stay, so that no spike is lost
TICKS = 5  # on an axis, about
TREND = 60  # parts of a long curve, whose means are a line over it
SAMPLES = 30  # steps of a curve whose values can be read
Point = tuple[float, float]
Curves = Mapping[str, Sequence[Point]]


@dataclass(frozen=True)
class Interval:
    """A dot with its interval, under `label`; those of one `series` have one colour."""

    label: str
    series: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1
        return self.begin + (value - self.low) / span * (self.end - self.begin)


def finite(series: Curves) -> dict[str, list[Point]]:
    """The series without values that are no numbers; of those that are left empty, nothing."""
    found = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    return {name: points for name, points in found.items() if points}


def reduced(points: Sequence[Point], columns: int = COLUMNS) -> list[Point]:
    """The points, or of many the first, the least, the greatest and the last one in each of `columns` parts."""
    if len(points) <= 4 * columns:
        return list(points)
    kept: list[Point] = []
    for part in _columns_of(points, columns):
        chosen = {part[0], min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1]), part[-1]}
        kept += sorted(chosen)
    return kept


def trend(points: Sequence[Point]) -> list[Point]:
    """The means of the parts of a curve that is too long to be seen point by point; nothing of any other."""
    if len(points) <= 4 * COLUMNS:
        return []
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in _columns_of(points, TREND)]


def _columns_of(points: Sequence[Point], count: int) -> list[Sequence[Point]]:
    return [points[i * len(points) // count : (i + 1) * len(points) // count] for i in range(count)]


def sampled(points: Sequence[Point], count: int = SAMPLES) -> list[Point]:
    """At most `count` points: the first, the last, evenly many between them, and always the least and the greatest."""
    if len(points) <= count:
        return list(points)
    even = [points[i * (len(points) - 1) // (count - 3)] for i in range(count - 2)]
    extremes = (min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1]))
    return sorted({*even, *extremes})


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round numbers within a range."""
    if not high > low:
        return [low]
    step = _step(low, high, count)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _step(low: float, high: float, count: int = TICKS) -> float:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def tick_label(value: float, step: float) -> str:
    """With as many decimals as neighbours at a distance of `step` need to differ."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.2g}" if decimals > 5 or abs(value) >= 1e7 else f"{value:,.{decimals}f}"


def lines(title: str, series: Curves) -> Markup:
    """Curves over steps, without values that are no numbers. Empty where there is nothing to draw."""
    series = finite(series)
    if not series:
        return Markup("")
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    across = _Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = _Scale(*_widened(min(ys), max(ys)), HEIGHT - BOTTOM, TOP)
    parts = [_grid(across, up)]
    for number, points in enumerate(series.values()):
        style, means = f"line s{number % COLOURS}", trend(points)
        for kind, drawn in ((f"{style} all" if means else style, reduced(points)), (style, means)):
            path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in drawn)
            parts += [f'<polyline class="{kind}" points="{path}"/>'] if drawn else []
    for number, (name, points) in enumerate(series.items()):
        style = f"{'dot' if len(points) <= SAMPLES else 'hit'} s{number % COLOURS}"
        said = f"{name}, step " if len(series) > 1 else "step "
        parts += [_dot(across(x), up(y), style, f"{said}{x:,g}: {shown(y)}") for x, y in sampled(points)]
    ends = "; ".join(f"{name} from {shown(p[0][1])} to {shown(p[-1][1])}" for name, p in series.items())
    return _svg(f"{title}, steps {min(xs):g} to {max(xs):g}: {ends}", parts, HEIGHT)


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range around a curve that is flat."""
    margin = 0.0 if high > low else abs(low) / 10 or 1.0
    return low - margin, high + margin


def whiskers(title: str, intervals: Sequence[Interval], zero: bool = False) -> Markup:
    """Intervals, grouped by their label. `zero`: with a line there, for differences. Empty where there are none."""
    intervals = [each for each in intervals if all(map(math.isfinite, (each.value, each.low, each.high)))]
    if not intervals:
        return Markup("")
    names = list(dict.fromkeys(each.series for each in intervals))
    labels = list(dict.fromkeys(each.label for each in intervals))
    ends = [end for each in intervals for end in (each.low, each.high)] + [0.0] * zero
    across = _Scale(*_widened(min(ends), max(ends)), 12, WIDTH - RIGHT)
    body, y = [], float(TOP)
    for label in labels:
        body.append(f'<text x="6" y="{y + 12:g}" class="name">{escape(label)}</text>')
        y += LABEL
        for each in (each for each in intervals if each.label == label):
            body.append(_whisker(each, across, y, f"s{names.index(each.series) % COLOURS}"))
            y += ROW
    bottom = y + 4
    said = "; ".join(f"{each.label} {_said(each)}" for each in intervals)
    return _svg(f"{title}: {said}", [_columns(across, bottom), *body], int(bottom) + 24)


def _whisker(each: Interval, across: _Scale, y: float, style: str) -> str:
    line = f'<line class="line {style}" x1="{across(each.low):.1f}" x2="{across(each.high):.1f}" y1="{y}" y2="{y}"/>'
    return line + _dot(across(each.value), y, f"dot {style}", f"{each.label} {_said(each)}")


def _said(each: Interval) -> str:
    return f"{each.series} {ranged(each.value, each.low, each.high)}".lstrip()


def _columns(across: _Scale, bottom: float) -> str:
    parts, step = [], _step(across.low, across.high)
    for x in ticks(across.low, across.high):
        style = "zero" if x == 0 else "grid"
        parts.append(f'<line class="{style}" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{TOP}" y2="{bottom:g}"/>')
        label = tick_label(x, step)
        parts.append(f'<text x="{across(x):.1f}" y="{bottom + 18:g}" text-anchor="middle">{label}</text>')
    return "".join(parts)


def _grid(across: _Scale, up: _Scale) -> str:
    parts, step = [], _step(up.low, up.high)
    for y in ticks(up.low, up.high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{tick_label(y, step)}</text>')
    for x in ticks(across.low, across.high):
        if x == int(x):
            parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{x:,.0f}</text>')
    return "".join([*parts, f'<text x="{LEFT - 20}" y="{HEIGHT - 8}" text-anchor="end">step</text>'])


def _dot(x: float, y: float, style: str, label: str) -> str:
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(label)}</title></circle>'


def _svg(label: str, parts: Sequence[str], height: int) -> Markup:
    inner = "".join(parts)
    return Markup(  # every text in it went through `escape`
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {height}">{inner}</svg>'
    )


def ranged(value: float, low: float, high: float, sign: str = "") -> str:
    """A value and its interval for people, with the decimals that the width of the interval is worth."""
    width = high - low
    decimals = 1 - math.floor(math.log10(width)) if width > 0 else 4
    style = f"{sign},.{min(max(decimals, 0), 6)}f"
    return f"{value:{style}} [{low:{style}}, {high:{style}}]"


def shown(value: float) -> str:
    """A number for people: four digits."""
    return f"{value:.4g}" if abs(value) < 1e3 else f"{value:,.0f}"
