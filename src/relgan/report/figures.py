"""Charts as SVG text: drawn here, coloured by the page's style sheet, read out, enlarged and zoomed by its script.

Plotly was tried on the page of 48 runs: its script alone is 4.8 MB a page, against 0.7 MB for all charts drawn here;
the page took several times as long to open, and it knows neither the page's dark colours nor its keyboard. What it
would add, zoom and download, is a screen of script.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from relgan.report.compare import Point

COLOURS = 8  # of the style sheet; further variants are dashed
WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 398, 10, 212
ROW = 30  # height of a line of a dot plot
LONGEST = 48  # letters of a name that leave room for the numbers beside it
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DECADES = 7  # a logarithmic axis shows the largest value and this many powers of ten below it


@dataclass(frozen=True)
class Series:
    """One line with its band.

    Attributes:
        label: as the read-out calls it.
        style: number of the colour and dash, the same for one variant in every chart.
        points: in the order they are joined.
        dashed: the second line of a pair that shares a colour.
    """

    label: str
    style: int
    points: list[Point]
    dashed: bool = False


@dataclass(frozen=True)
class Dots:
    """One line of a dot plot.

    Attributes:
        label, text: what stands at the left and at the right.
        style: as of :class:`Series`.
        values: by seed.
    """

    label: str
    text: str
    style: int
    values: dict[int, float]


@dataclass(frozen=True)
class Axis:
    """Values to pixels, with the ticks that belong to them."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        a, b, v = (self._scale(x) for x in (self.low, self.high, value))
        return self.start + (v - a) / (b - a) * (self.end - self.start)

    def _scale(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.log else value

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            if last - first >= 2:
                every = max(1, math.ceil((last - first + 1) / 5))
                return [10.0**power for power in range(first, last + 1, every)]
            between = (m * 10.0**power for power in range(first - 1, last + 1) for m in (1, 2, 5))
            found = [value for value in between if self.low <= value <= self.high]
            if len(found) > 2:
                return found
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (step * m) <= 5)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def linear(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis a little wider than the values."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return Axis(low - margin, high + margin, start, end)


def logarithmic(values: Sequence[float], start: float, end: float) -> Axis:
    """A logarithmic axis a little wider than the values; those of zero or far below the rest lie on its edge."""
    high = max(values)
    high = high if high > 0 else 1.0
    low = max(min((value for value in values if value > 0), default=high), high * 10.0**-DECADES)
    margin = (high / low) ** 0.05 if high > low else 2.0
    return Axis(low / margin, high * margin, start, end, log=True)


def spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > 10 * min(values)


def number(value: float) -> str:
    """A number for an axis: 1.5k, 0.02, 10⁻⁵."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e7:
        return "10" + str(math.floor(math.log10(abs(value)) + 0.5)).translate(_RAISED)
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def chart(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str,
    log: bool | None = False,
    unit: bool = False,
    until: float = 0,
) -> Markup:
    """Lines with bands over steps.

    Args:
        title: what the picture shows, for those who do not see it.
        x, y: names of the axes.
        log: a logarithmic y axis; None: where the values are positive and span a decade.
        unit: y from 0 to 1.
        until: x goes at least this far, so that charts side by side share an axis.
    """
    lows = [point.low for line in series for point in line.points]
    highs = [point.high for line in series for point in line.points]
    if log is None:
        log = spans_decades(lows + highs)
    end = max([until, *(point.x for line in series for point in line.points)])
    horizontal = Axis(0, end or 1, LEFT, RIGHT)
    make: Callable[..., Axis] = logarithmic if log else linear
    vertical = Axis(0, 1, BOTTOM, TOP) if unit else make(lows + highs, BOTTOM, TOP)
    bands = [_band(line, horizontal, vertical) for line in series]
    lines = [_line(line, horizontal, vertical) for line in series]
    return _frame(horizontal, vertical, bands + lines, title=title, x=x, y=y)


def against(series: Sequence[Series], *, title: str, x: str, y: str) -> Markup:
    """One positive quantity against another, both logarithmic, with the line where they are equal; a dot at the end."""
    values = [value for line in series for point in line.points for value in (point.x, point.y)]
    horizontal, vertical = logarithmic(values, LEFT, RIGHT), logarithmic(values, BOTTOM, TOP)
    diagonal = Markup('<path class="equal" d="M{} {}L{} {}"/>').format(LEFT, BOTTOM, RIGHT, TOP)
    lines = [_line(line, horizontal, vertical) for line in series]
    dots = [
        Markup('<path class="end s{}" data-variant="{}" d="M{:.1f} {:.1f}h.01"/>').format(
            line.style, line.style, horizontal(line.points[-1].x), vertical(line.points[-1].y)
        )
        for line in series
    ]
    return _frame(horizontal, vertical, [diagonal, *lines, *dots], title=title, x=x, y=y, kind="chart against")


def dot_plot(rows: Sequence[Dots], *, title: str, x: str) -> Markup:
    """Every seed of each row as a dot, their mean as a bar; a logarithmic axis where the values span decades."""
    values = [value for row in rows for value in row.values.values()]
    bottom = TOP + ROW * len(rows)
    make: Callable[..., Axis] = logarithmic if spans_decades(values) else linear
    axis = make(values, 8, WIDTH - 8)
    parts = [
        Markup('<svg class="chart dots" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, bottom + 38, title
        )
    ]
    for tick in axis.ticks():
        at = axis(tick)
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(at, TOP, bottom))
        parts.append(Markup('<text x="{:.1f}" y="{}" class="x">{}</text>').format(at, bottom + 16, number(tick)))
    for place, row in enumerate(rows):
        middle = TOP + ROW * place + 21
        mean = axis(sum(row.values.values()) / len(row.values))
        label = '<g data-variant="{}"><text y="{}" class="label">{}</text><text x="{}" y="{}" class="y label">{}</text>'
        name = row.label if len(row.label) <= LONGEST else f"{row.label[: LONGEST - 1]}…"
        parts.append(Markup(label).format(row.style, middle - 9, name, WIDTH, middle - 9, row.text))
        parts.append(Markup('<path class="track" d="M0 {}H{}"/>').format(middle, WIDTH))
        if len(row.values) > 1:
            parts.append(Markup('<path class="mean s{}" d="M{:.1f} {}v12"/>').format(row.style, mean, middle - 6))
        seed = '<circle class="seed s{}" cx="{:.1f}" cy="{}" r="4"><title>seed {}: {:.5g}</title></circle>'
        parts += [Markup(seed).format(row.style, axis(v), middle, number, v) for number, v in row.values.items()]
        parts.append(Markup("</g>"))
    parts.append(Markup('<text x="{}" y="{}" class="x name">{}</text></svg>').format(WIDTH / 2, bottom + 33, x))
    return Markup("").join(parts)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _line(line: Series, x: Axis, y: Axis) -> Markup:
    path = _path([(x(point.x), y(point.y)) for point in line.points])
    kind = "pair" if line.dashed else f"dash{line.style // COLOURS % 3}"
    if len(line.points) == 1:
        path, kind = f"{path}h.01", "dot"  # round caps make a dot of it
    values = {"x": [f"{point.x:.7g}" for point in line.points], "y": [f"{point.y:.4g}" for point in line.points]}
    if _has_band(line):
        values |= {
            "low": [f"{point.low:.4g}" for point in line.points],
            "high": [f"{point.high:.4g}" for point in line.points],
        }
    data = Markup(" ").join(Markup('data-{}="{}"').format(name, " ".join(texts)) for name, texts in values.items())
    return Markup('<path class="line s{} {}" data-variant="{}" data-label="{}" {} d="{}"/>').format(
        line.style, kind, line.style, line.label, data, path
    )


def _has_band(line: Series) -> bool:
    return any(point.low != point.high for point in line.points)


def _band(line: Series, x: Axis, y: Axis) -> Markup:
    if not _has_band(line):
        return Markup("")
    upper = [(x(point.x), y(point.high)) for point in line.points]
    lower = [(x(point.x), y(point.low)) for point in reversed(line.points)]
    return Markup('<path class="band s{}" data-variant="{}" d="{}Z"/>').format(
        line.style, line.style, _path(upper + lower)
    )


def _frame(
    x_axis: Axis, y_axis: Axis, content: Sequence[Markup], *, title: str, x: str, y: str, kind: str = "chart"
) -> Markup:
    axes = " ".join(f"{end:.7g}" for axis in (x_axis, y_axis) for end in (axis.low, axis.high, int(axis.log)))
    head = '<svg class="{}" viewBox="0 0 {} {}" role="img" tabindex="0" aria-label="{}" data-y="{}" data-axes="{}">'
    parts = [Markup(head).format(kind, WIDTH, HEIGHT, title, y, axes)]
    for tick in y_axis.ticks():
        at = y_axis(tick)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, at, RIGHT))
        parts.append(Markup('<text x="{}" y="{:.1f}" dy="3.5" class="y">{}</text>').format(LEFT - 6, at, number(tick)))
    for tick in x_axis.ticks():
        at = x_axis(tick)
        parts.append(Markup('<path class="tick" d="M{:.1f} {}v4"/>').format(at, BOTTOM))
        parts.append(Markup('<text x="{:.1f}" y="{}" class="x">{}</text>').format(at, BOTTOM + 16, number(tick)))
    parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, BOTTOM, RIGHT))
    parts.append(Markup('<text x="{}" y="{}" class="x name">{}</text>').format((LEFT + RIGHT) / 2, HEIGHT - 4, x))
    # What is zoomed: the part of the plot that this inner picture shows.
    size = (LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP)
    inner = '<svg class="plot" x="{}" y="{}" width="{}" height="{}" viewBox="{}" preserveAspectRatio="none">'
    parts.append(Markup(inner).format(*size, " ".join(map(str, size))))
    parts += content
    parts.append(
        Markup('</svg><path class="cursor" d=""/><rect class="chosen" y="{}" height="{}"/></svg>').format(
            TOP, BOTTOM - TOP
        )
    )
    return Markup("").join(parts)
