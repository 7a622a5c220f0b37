"""A line chart as SVG, by the standard library alone; its text is read on a light page and on a dark one.

A curve is {name, title, x, y, log: [axes], series: [{name, points: [[x, y, low, high] ...]}]}. Every line has its name at its
end, its own dashes and marks, so that it is told from the others without colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 200, 46, 46
COLOURS = ("#2f81c7", "#d9730d", "#1a9e6f", "#b65fb0", "#8a8f98", "#c2a000")
DASHES = ("", "7 4", "2 3", "10 3 2 3", "4 2", "1 4")
LINE_HEIGHT = 15
STYLE = """
 text { font: 12px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #57606a }
 .title { font-size: 14px; font-weight: 600; fill: #24292f } .grid { stroke: #8c959f; stroke-opacity: .25 }
 .axis { stroke: #8c959f } .line { fill: none; stroke-width: 2 }
 @media (prefers-color-scheme: dark) { text { fill: #9da7b3 } .title { fill: #e6edf3 } }
"""


class Axis:
    """From values to places: linear from 0, or logarithmic between round numbers (`marks`: between these, and ticked there)."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, *, log: bool, marks: Sequence[float] = ()
    ) -> None:
        self._log, self._start, self._end = log, start, end
        if not log:
            step = _step(max([*values, 1e-9]))
            self.ticks = [step * number for number in range(math.ceil(max([*values, 1e-9]) / step - 1e-9) + 1)]
        elif len(marks) > 1:
            self.ticks = list(marks)
        else:
            positive = [value for value in values if value > 0] or [1.0]
            self.ticks = _rounds(min(positive), max(positive))
        self._low, self._high = self.ticks[0], self.ticks[-1]

    def at(self, value: float) -> float:
        if self._log:
            part = math.log(max(value, self._low) / self._low) / math.log(self._high / self._low)
        else:
            part = (value - self._low) / (self._high - self._low)
        return self._start + part * (self._end - self._start)


def _step(high: float) -> float:
    """1, 2 or 5 times a power of ten, at most six of them up to `high`."""
    power = 10.0 ** math.floor(math.log10(high))
    return next(power * part for part in (0.1, 0.2, 0.5, 1.0, 2.0) if high / (power * part) <= 6 + 1e-9)


def _rounds(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last below `low` to the first above `high`; of many, the powers between."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = [digit * 10.0**power for power in range(first - 1, last + 1) for digit in (1, 2, 5)]
    start = max(index for index, value in enumerate(every) if value <= low * (1 + 1e-9))
    end = min((index for index, value in enumerate(every) if value >= high * (1 - 1e-9)), default=len(every) - 1)
    kept = every[start : max(end, start + 1) + 1]
    if len(kept) <= 8:
        return kept
    tens = [value for value in kept[1:-1] if math.isclose(math.log10(value), round(math.log10(value)), abs_tol=1e-9)]
    return [kept[0], *tens, kept[-1]]


def label(value: float) -> str:
    """As short as it goes: 20k, 1M, 0.5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _spread(places: Sequence[float], low: float, high: float) -> list[float]:
    """The labels' heights, in the same order, so that none covers another."""
    order = sorted(range(len(places)), key=lambda number: places[number])
    out = list(places)
    last = low - LINE_HEIGHT
    for number in order:
        last = out[number] = max(out[number], last + LINE_HEIGHT)
    limit = high
    for number in reversed(order):
        limit = out[number] = min(out[number], limit)
        limit -= LINE_HEIGHT
    return out


def chart(curve: Mapping[str, Any]) -> str:
    """The SVG document."""
    every = [point for line in curve["series"] for point in line["points"]]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    marks = sorted({point[0] for point in every})
    across = Axis(marks, LEFT, right, log="x" in curve["log"], marks=marks)
    tops = [max(point[1:]) for point in every] + ([min(point[1:]) for point in every] if "y" in curve["log"] else [])
    up = Axis(tops, bottom, TOP, log="y" in curve["log"])
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>{escape(curve['title'])}</title><style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="18">{escape(curve["title"])}</text>',
        f'<text x="{LEFT}" y="35">{escape(curve["y"])}</text>',
        f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(curve["x"])}</text>',
    ]
    for tick in up.ticks:
        y = up.at(tick)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label(tick)}</text>')
    for tick in across.ticks:
        x = across.at(tick)
        out.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{label(tick)}</text>')
    out.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    ends = _spread([up.at(line["points"][-1][1]) for line in curve["series"]], TOP + 4, bottom)
    for number, (line, end) in enumerate(zip(curve["series"], ends, strict=True)):
        out += _line(number, line, across, up, right, end)
    return "\n".join([*out, "</svg>\n"])


def _line(number: int, line: Mapping[str, Any], across: Axis, up: Axis, right: float, end: float) -> list[str]:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    places = [(across.at(point[0]), up.at(point[1])) for point in line["points"]]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    out = [f'<polyline class="line" stroke="{colour}"{dashed} points="{drawn}"/>']
    for point, (x, y) in zip(line["points"], places, strict=True):
        if len(point) > 3 and point[3] > point[2]:
            out.append(
                f'<line stroke="{colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{up.at(point[2]):.1f}" y2="{up.at(point[3]):.1f}"/>'
            )
        out.append(f'<circle fill="{colour}" r="3" cx="{x:.1f}" cy="{y:.1f}"/>')
    out.append(
        f'<line class="line" stroke="{colour}"{dashed} x1="{right + 8}" x2="{right + 30}" y1="{end:.1f}" y2="{end:.1f}"/>'
    )
    out.append(f'<text x="{right + 35}" y="{end + 4:.1f}">{escape(line["name"])}</text>')
    return out
