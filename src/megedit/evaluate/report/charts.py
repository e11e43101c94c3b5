"""The figures of the report as inline SVG: numbers in, markup out.

On a page, series i has the colour `--s0` to `--s5` of its style sheet, lines and text are `currentColor`, so that a
figure follows the light or dark page it stands on. `svg_file` makes a file of a figure, with colours of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

SERIES = 6
EstimateJson = Mapping[str, float]
_WIDTH, _HEIGHT = 440, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 410, 10, 246
_PERCENT_TICKS = tuple((float(value), str(value)) for value in (0, 25, 50, 75, 100))
STYLE = """\
svg text { fill: currentColor; } svg .muted { fill: var(--muted); }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--muted); }
svg .whisker { stroke: currentColor; stroke-width: 1.3; opacity: .75; }
svg .curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; } svg .curve.s1 { stroke-dasharray: 6 4; }
svg .chance, svg .mark { fill: none; stroke: var(--muted); stroke-dasharray: 1.5 4; }
svg .joined { fill: none; stroke: var(--muted); stroke-width: 1.3; }
svg .dot { stroke: var(--page); stroke-width: 1.5; } svg .area { fill-opacity: .6; }
""" + "".join(
    f"svg .curve.{s} {{ stroke: var(--{s}); }} svg .bar.{s}, svg .dot.{s}, svg .area.{s} {{ fill: var(--{s}); }}\n"
    for s in (f"s{i}" for i in range(SERIES))
)
_FILE_COLOURS = {  # readable on white and on black
    "text": "#768390", "muted": "#768390", "rule": "#76839055", "page": "none",
    "s0": "#2f81f7", "s1": "#d29922", "s2": "#3fb950", "s3": "#a371f7", "s4": "#db6d8d", "s5": "#9aa4af",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """Maps `low` to `high` onto pixels `start` to `end`; a value beyond them is put at the end it is nearest to."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...]
    label: str = ""
    log: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y), and one of its points to be marked, if any. Points need not be sorted."""

    points: Sequence[tuple[float, float]]
    chosen: tuple[float, float] | None = None


def bar_chart(groups: Sequence[tuple[str, Sequence[EstimateJson | None]]], description: str) -> Markup:
    """Horizontal bars from 0 to 100, whiskers from `low` to `high`; a group for each metric, a bar for each series."""
    x = Axis(0, 100, 8, _WIDTH - 46, _PERCENT_TICKS)
    parts, y = [], 0.0
    for label, estimates in groups:
        parts.append(_text(x.start, y + 13, label, "start"))
        y += 19
        for i, estimate in enumerate(estimates):
            if estimate is not None:
                parts += _bar(x, y, i, estimate)
                y += 15
        y += 9
    grid = [_line(x.at(value), 0, x.at(value), y, "grid") for value, _ in x.ticks]
    ticks = [_text(x.at(value), y + 15, text, "middle", "muted") for value, text in x.ticks]
    return _svg([*grid, *parts, *ticks], y + 22, description)


def roc_chart(curves: Sequence[Curve], description: str) -> Markup:
    """True against false positive rate (both 0 to 1), the latter on a logarithmic axis whose left end stands for 0.

    A good router lives within the first percent of false positives, which a linear axis does not show.
    """
    positive = [rate for curve in curves for rate, _ in curve.points if rate > 0]
    lowest = min(math.ceil(math.log10(min(positive, default=0.01))) - 1, -2)
    ticks = [(10.0**power, f"{10.0 ** (power + 2):g}") for power in range(lowest, 1)]
    ticks[0] = (ticks[0][0], "0")
    x = Axis(10.0**lowest, 1, _LEFT, _RIGHT, tuple(ticks), "False positive rate, % (log scale)", log=True)
    y = Axis(0, 1, _BOTTOM, _TOP, tuple((value / 100, text) for value, text in _PERCENT_TICKS), "True positive rate, %")
    chance = [(10 ** (lowest * (1 - i / 40)),) * 2 for i in range(41)]
    parts = [*_frame(x, y), _polyline(x, y, chance, "chance")]
    for i, curve in enumerate(curves):
        parts.append(_polyline(x, y, sorted(curve.points), f"curve s{i % SERIES}"))
    for i, curve in enumerate(curves):
        if curve.chosen is not None:
            parts.append(_dot(x, y, *curve.chosen, f"dot s{i % SERIES}", "at the chosen threshold"))
    return _svg(parts, _HEIGHT, description)


def histogram(classes: Sequence[Sequence[float]], x_label: str, description: str) -> Markup:
    """Share of each class in bins of equal width on a logarithmic axis; values below 1e-6 are counted as 1e-6."""
    values = [np.maximum(np.asarray(each, dtype=float), 1e-6) for each in classes]
    x = _log_axis(np.concatenate(values).tolist(), x_label)
    edges = np.geomspace(x.low, x.high, 37)
    shares = [np.histogram(np.clip(each, x.low, x.high), edges)[0] / max(1, len(each)) for each in values]
    tallest = max(float(share.max()) for share in shares)
    top = next(limit for limit in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if limit >= tallest - 1e-9)
    y_ticks = tuple((top * i / 4, f"{25 * top * i:g}") for i in range(5))
    y = Axis(0, top, _BOTTOM, _TOP, y_ticks, "Share of the class, %")
    parts = _frame(x, y)
    for i, share in enumerate(shares):
        for height, left, right in zip(share, edges[:-1], edges[1:], strict=True):
            if height > 0:
                parts.append(_box(x.at(left), y.at(height), x.at(right), y.at(0), f"area s{i % SERIES}"))
    return _svg(parts, _HEIGHT, description)


def scaling_chart(points: Sequence[tuple[float, EstimateJson] | None], joined: bool, description: str) -> Markup:
    """Estimates (percent) with whiskers against a count on a logarithmic axis, point i in the colour of series i.

    joined: whether a line goes through the points, from the smallest count to the largest.
    """
    found = [(i, *point) for i, point in enumerate(points) if point is not None]
    x = _log_axis([count for _, count, _ in found], "Edits (log scale)", "{:,.0f}")
    y = Axis(0, 100, _BOTTOM, _TOP, _PERCENT_TICKS, "Score")
    parts = _frame(x, y)
    if joined:
        parts.append(_polyline(x, y, sorted((count, each["value"]) for _, count, each in found), "joined"))
    for i, count, each in found:
        parts.append(_line(x.at(count), y.at(each["low"]), x.at(count), y.at(each["high"]), "whisker"))
        title = f"{count:,.0f} edits: {each['value']:.1f}"
        parts.append(_dot(x, y, count, each["value"], f"dot s{i % SERIES}", title))
    return _svg(parts, _HEIGHT, description)


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    description: str,
    *,
    marked: float | None = None,
) -> Markup:
    """Percentages (0 to 100) against whole numbers, a line for each named series, and a legend below them.

    marked: a dotted vertical line at this number.
    """
    numbers = sorted({at_x for points in series.values() for at_x, _ in points})
    low, high = numbers[0], max(numbers[-1], numbers[0] + 1)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if (high - low) / step <= 12)
    ticks = tuple((float(n), f"{n:g}") for n in range(math.ceil(low / step) * step, math.floor(high) + 1, step))
    x = Axis(low, high, _LEFT, _RIGHT, ticks, x_label)
    y = Axis(0, 100, _BOTTOM, _TOP, _PERCENT_TICKS, y_label)
    parts, at = _frame(x, y), float(_LEFT)
    if marked is not None:
        parts.append(_line(x.at(marked), y.start, x.at(marked), y.end, "mark"))
    for i, (name, points) in enumerate(series.items()):
        parts.append(_polyline(x, y, sorted(points), f"curve s{i % SERIES}"))
        parts += [_dot(x, y, *point, f"dot s{i % SERIES}", f"{name}: {point[1]:.1f}") for point in points]
        parts += [_box(at, _HEIGHT + 4, at + 10, _HEIGHT + 14, f"bar s{i % SERIES}")]
        parts.append(_text(at + 15, _HEIGHT + 13, name, "start"))
        at += 30 + 6.5 * len(name)
    return _svg(parts, _HEIGHT + 22, description)


def svg_file(chart: Markup) -> str:
    """A figure as the content of an SVG file that needs nothing else."""
    style = re.sub(r"var\(--(\w+)\)", lambda match: _FILE_COLOURS[match[1]], STYLE)
    sheet = f"<style>\nsvg {{ color: {_FILE_COLOURS['text']}; font: 12px sans-serif; }}\n{style}</style>"
    head, _, rest = chart.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{sheet}{rest}\n'


def _log_axis(values: Sequence[float], label: str, form: str = "") -> Axis:
    """Whole decades around the values; ticks are written by `form`, or as powers of ten."""
    first = math.floor(math.log10(min(values)))
    last = max(first + 1, math.ceil(math.log10(max(values))))
    powers = range(first, last + 1)
    ticks = tuple((10.0**p, form.format(10.0**p) if form else "10" + str(p).translate(_SUPERSCRIPTS)) for p in powers)
    return Axis(10.0**first, 10.0**last, _LEFT, _RIGHT, ticks, label, log=True)


def _frame(x: Axis, y: Axis) -> list[Markup]:
    """Grid, tick labels and axis labels."""
    parts = [_line(x.start, y.at(value), x.end, y.at(value), "grid") for value, _ in y.ticks]
    parts += [_text(x.start - 6, y.at(value) + 4, text, "end", "muted") for value, text in y.ticks]
    parts += [_line(x.at(value), y.start, x.at(value), y.start + 5, "axis") for value, _ in x.ticks]
    parts += [_text(x.at(value), y.start + 18, text, "middle", "muted") for value, text in x.ticks]
    parts.append(_line(x.start, y.start, x.end, y.start, "axis"))
    parts.append(_text((x.start + x.end) / 2, y.start + 38, x.label, "middle"))
    middle = (y.start + y.end) / 2
    turn = f"rotate(-90 12 {middle:.1f})"
    return [*parts, _tag("text", y.label, x=12, y=middle, text_anchor="middle", transform=turn)]


def _bar(x: Axis, y: float, series: int, estimate: EstimateJson) -> list[Markup]:
    value, low, high = estimate["value"], x.at(estimate["low"]), x.at(estimate["high"])
    return [
        _box(x.start, y, x.at(value), y + 12, f"bar s{series % SERIES}"),
        _line(low, y + 6, high, y + 6, "whisker"),
        _line(low, y + 3, low, y + 9, "whisker"),
        _line(high, y + 3, high, y + 9, "whisker"),
        _text(_WIDTH - 2, y + 10, f"{value:.1f}", "end"),
    ]


def _svg(parts: Iterable[Markup], height: float, description: str) -> Markup:
    content = Markup("").join(parts)
    return _tag("svg", content, viewBox=f"0 0 {_WIDTH} {height:.0f}", role="img", aria_label=description)


def _text(x: float, y: float, text: str, anchor: str, style: str = "label") -> Markup:
    return _tag("text", text, x=x, y=y, text_anchor=anchor, class_=style)


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return _tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def _box(left: float, top: float, right: float, bottom: float, style: str) -> Markup:
    return _tag("rect", x=left, y=top, width=right - left, height=bottom - top, class_=style)


def _dot(x: Axis, y: Axis, at_x: float, at_y: float, style: str, title: str) -> Markup:
    return _tag("circle", _tag("title", title), cx=x.at(at_x), cy=y.at(at_y), r=4.5, class_=style)


def _polyline(x: Axis, y: Axis, points: Iterable[tuple[float, float]], style: str) -> Markup:
    """Points that fall on the same tenth of a pixel are drawn once."""
    drawn = dict.fromkeys(f"{x.at(at_x):.1f},{y.at(at_y):.1f}" for at_x, at_y in points)
    return _tag("polyline", points=" ".join(drawn), class_=style)


def _tag(name: str, content: str = "", **attributes: object) -> Markup:
    """An element; `class_` and `text_anchor` become `class` and `text-anchor`, numbers get one decimal."""
    shown = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), f"{value:.1f}" if _is_number(value) else value)
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, shown, escape(content))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.floating)
