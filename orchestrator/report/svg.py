"""Draws plots of points with error bars as SVG text, one panel under another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

WIDTH, HEIGHT = 900, 380  # of a panel, in pixels; a long legend makes it higher
LEFT, RIGHT, TOP, BOTTOM = 64, 560, 40, 320  # its plotting area; the legend stands to the right
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Colour-blind readers can tell these apart, too (Okabe and Ito, 2008)."""
LOG_FROM = 8  # an axis whose largest value is so many times its smallest is logarithmic
PLACES = ((9, -7, "start"), (9, 16, "start"), (-9, -7, "end"), (-9, 16, "end"))  # of a mark beside its point


class Point(NamedTuple):
    """A value with its interval; `mark` is the short text beside it."""

    x: float
    y: float
    low: float
    high: float
    mark: str = ""


class Series(NamedTuple):
    """Points of one colour under one name in the legend; `joined`: a line runs through them."""

    name: str
    points: list[Point]
    joined: bool = False


class Panel(NamedTuple):
    """A plot: its title, the labels of its axes, and its series."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    x_ticks: tuple[float, ...] = ()
    """Positions of the ticks; round values if empty."""


class Axis(NamedTuple):
    """An axis that maps values between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool
    ticks: list[float]

    def at(self, value: float) -> float:
        low, high = (log10(self.low), log10(self.high)) if self.logarithmic else (self.low, self.high)
        share = ((log10(value) if self.logarithmic else value) - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)


def axis(values: Sequence[float], start: float, end: float, logarithmic: bool = False) -> Axis:
    """An axis that shows all `values` with some room around them and round ticks."""
    low, high = min(values), max(values)
    if logarithmic:
        low, high = low / 1.2, high * 1.2
        powers = range(floor(log10(low)), ceil(log10(high)) + 1)
        ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    else:
        room = 0.06 * (high - low) or max(1.0, 0.1 * abs(high))
        low, high = low - room, high + room
        power = 10.0 ** floor(log10((high - low) / 6))
        step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= (high - low) / 6 * (1 - 1e-9))
        ticks = [step * i for i in range(ceil(low / step), floor(high / step) + 1)]
    return Axis(low, high, start, end, logarithmic, [tick for tick in ticks if low <= tick <= high])


def figure(panels: Sequence[Panel]) -> str:
    """An SVG file of these panels, each of which needs a point."""
    lines, height = [], 0
    for panel in panels:
        lines += [f'<g transform="translate(0 {height})">', *draw(panel), "</g>"]
        height += max(HEIGHT, TOP + 20 * len(panel.series) + 20)
    return document("; ".join(panel.title for panel in panels), height, lines)


def document(title: str, height: int, lines: Iterable[str]) -> str:
    """An SVG file of these elements, given as lines."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img"><title>{escape(title)}</title>'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height}" fill="white"/>', *lines, "</svg>"]) + "\n"


def draw(panel: Panel) -> Iterator[str]:
    """The elements of one panel."""
    points = [point for series in panel.series for point in series.points]
    xs = [point.x for point in points]
    x = axis(xs, LEFT, RIGHT, logarithmic=min(xs) > 0 and max(xs) >= LOG_FROM * min(xs))
    x = x._replace(ticks=list(panel.x_ticks)) if panel.x_ticks else x
    y = axis([value for point in points for value in (point.low, point.y, point.high)], BOTTOM, TOP)
    yield from frame(x, y, panel.title, panel.x_label)
    turned = f'transform="rotate(-90 16 {(TOP + BOTTOM) / 2:g})"'
    yield text(16, (TOP + BOTTOM) / 2, panel.y_label, "middle", turned)
    taken: list[tuple[float, float]] = []
    for i, series in enumerate(panel.series):
        yield from draw_series(series, COLOURS[i % len(COLOURS)], x, y, taken)
        yield key(RIGHT + 20, TOP + 6 + 20 * i, series.name, COLOURS[i % len(COLOURS)])


def frame(x: Axis, y: Axis, title: str, label: str = "", unit: str = "") -> Iterator[str]:
    """Title, frame, ticks with their labels (of `y` in `unit`) and the `label` below them."""
    yield text(x.start, y.end - 16, title, weight="bold")
    yield (
        f'<rect x="{x.start}" y="{y.end}" width="{x.end - x.start}" height="{y.start - y.end}" fill="none" '
        'stroke="#444"/>'
    )
    for tick in x.ticks:
        yield f'<path d="M{x.at(tick)} {y.end}V{y.start + 5}" stroke="#ddd"/>'
        yield text(x.at(tick), y.start + 19, f"{tick:,.10g}", "middle")
    for tick in y.ticks:
        yield f'<path d="M{x.start - 5} {y.at(tick)}H{x.end}" stroke="#ddd"/>'
        yield text(x.start - 9, y.at(tick) + 4, f"{tick:,.10g}{unit}", "end")
    if label:
        yield text((x.start + x.end) / 2, y.start + 38, label, "middle")


def key(x: float, y: float, name: str, colour: str) -> str:
    """An entry of a legend: a dot and a name."""
    return f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>' + text(x + 12, y + 4, name)


def path(points: Iterable[tuple[float, float]], colour: str) -> str:
    """A line through points, given in pixels."""
    way = "L".join(f"{x} {y}" for x, y in points)
    return f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def draw_series(series: Series, colour: str, x: Axis, y: Axis, taken: list[tuple[float, float]]) -> Iterator[str]:
    """Line, error bars, points and marks; `taken` are the places of the marks so far."""
    if series.joined:
        yield path(((x.at(point.x), y.at(point.y)) for point in series.points), colour)
    places = PLACES[1:] + PLACES[:1] if series.joined else PLACES  # a line mostly rises: there is room below it
    for point in series.points:
        across, up = x.at(point.x), y.at(point.y)
        yield path([(across, y.at(point.low)), (across, y.at(point.high))], colour)
        yield f'<circle cx="{across}" cy="{up}" r="4" fill="{colour}"/>'
        if point.mark:
            free = [
                place
                for place in places
                if all(abs(across + place[0] - a) > 14 or abs(up + place[1] - b) > 12 for a, b in taken)
            ]
            right, down, anchor = (free or places)[0]
            taken.append((across + right, up + down))
            yield text(across + right, up + down, point.mark, anchor)


def text(x: float, y: float, words: str, anchor: str = "start", more: str = "", weight: str = "normal") -> str:
    return f'<text x="{x:.5g}" y="{y:.5g}" text-anchor="{anchor}" font-weight="{weight}" {more}>{escape(words)}</text>'
