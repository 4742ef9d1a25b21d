"""Plots of points with error bars as SVG text, one panel under another. Knows axes and ink, not what is plotted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

WIDTH, HEIGHT = 900, 380  # of a panel, in pixels; a long legend makes it higher
LEFT, RIGHT, TOP, BOTTOM = 64, 560, 40, 320  # its plotting area; the legend stands to the right
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Told apart by colour-blind readers, too (Okabe and Ito, 2008)."""
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
    """One plot."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    x_ticks: tuple[float, ...] = ()
    """Where the ticks stand; round values of the writer's choice if empty."""

    @property
    def height(self) -> int:
        return max(HEIGHT, TOP + 20 * len(self.series) + 20)


class Axis(NamedTuple):
    """Values between `low` and `high` on pixels between `start` and `end`."""

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
        step = round_step((high - low) / 6)
        ticks = [step * i for i in range(ceil(low / step), floor(high / step) + 1)]
    return Axis(low, high, start, end, logarithmic, [tick for tick in ticks if low <= tick <= high])


def round_step(raw: float) -> float:
    """1, 2 or 5 times a power of ten, not below `raw`."""
    power = 10.0 ** floor(log10(raw))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= raw * (1 - 1e-9))


def figure(panels: Sequence[Panel]) -> str:
    """A whole SVG file. Every panel needs a point."""
    lines: list[str] = []
    for i, panel in enumerate(panels):
        above = sum(other.height for other in panels[:i])
        lines += [f'<g transform="translate(0 {above})">', *draw(panel), "</g>"]
    return document("; ".join(panel.title for panel in panels), sum(panel.height for panel in panels), lines)


def document(title: str, height: int, lines: Iterable[str]) -> str:
    """An SVG file of these elements."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img"><title>{escape(title)}</title>'
    )
    ground = f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([head, ground, *lines, "</svg>"]) + "\n"


def draw(panel: Panel) -> Iterator[str]:
    """The elements of one panel."""
    points = [point for series in panel.series for point in series.points]
    xs = [point.x for point in points]
    x = axis(xs, LEFT, RIGHT, logarithmic=min(xs) > 0 and max(xs) >= LOG_FROM * min(xs))
    x = x._replace(ticks=list(panel.x_ticks)) if panel.x_ticks else x
    y = axis([value for point in points for value in (point.low, point.y, point.high)], BOTTOM, TOP)
    yield text(LEFT, TOP - 16, panel.title, weight="bold")
    yield from grid(x, y)
    yield text((LEFT + RIGHT) / 2, BOTTOM + 38, panel.x_label, "middle")
    turned = f'transform="rotate(-90 16 {(TOP + BOTTOM) / 2:g})"'
    yield text(16, (TOP + BOTTOM) / 2, panel.y_label, "middle", turned)
    taken: list[tuple[float, float]] = []
    for i, series in enumerate(panel.series):
        yield from draw_series(series, COLOURS[i % len(COLOURS)], x, y, taken)
        yield from legend(i, series.name, COLOURS[i % len(COLOURS)])


def legend(i: int, name: str, colour: str) -> Iterator[str]:
    """Line `i` of it."""
    yield f'<circle cx="{RIGHT + 20}" cy="{TOP + 6 + 20 * i}" r="4" fill="{colour}"/>'
    yield text(RIGHT + 32, TOP + 10 + 20 * i, name)


def grid(x: Axis, y: Axis) -> Iterator[str]:
    """Frame, ticks and their labels."""
    yield f'<rect x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}" fill="none" stroke="#444"/>'
    for tick in x.ticks:
        yield f'<path d="M{x.at(tick)} {TOP}V{BOTTOM + 5}" stroke="#ddd"/>'
        yield text(x.at(tick), BOTTOM + 19, f"{tick:,.10g}", "middle")
    for tick in y.ticks:
        yield f'<path d="M{LEFT - 5} {y.at(tick)}H{RIGHT}" stroke="#ddd"/>'
        yield text(LEFT - 9, y.at(tick) + 4, f"{tick:,.10g}", "end")


def draw_series(series: Series, colour: str, x: Axis, y: Axis, taken: list[tuple[float, float]]) -> Iterator[str]:
    """Line, error bars, points and marks; `taken` are the places of the marks so far."""
    if series.joined and len(series.points) > 1:
        way = "L".join(f"{x.at(point.x)} {y.at(point.y)}" for point in series.points)
        yield f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    places = PLACES[1:] + PLACES[:1] if series.joined else PLACES  # a line mostly rises: below it is room
    for point in series.points:
        across, up = x.at(point.x), y.at(point.y)
        yield f'<path d="M{across} {y.at(point.low)}V{y.at(point.high)}" stroke="{colour}" stroke-width="1.5"/>'
        yield f'<circle cx="{across}" cy="{up}" r="4" fill="{colour}"/>'
        if point.mark:
            free = [place for place in places if clear((across + place[0], up + place[1]), taken)]
            right, down, anchor = (free or places)[0]
            taken.append((across + right, up + down))
            yield text(across + right, up + down, point.mark, anchor)


def clear(place: tuple[float, float], taken: Sequence[tuple[float, float]]) -> bool:
    """Is there room for a mark?"""
    return all(abs(place[0] - other[0]) > 14 or abs(place[1] - other[1]) > 12 for other in taken)


def text(x: float, y: float, words: str, anchor: str = "start", more: str = "", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.5g}" y="{y:.5g}" text-anchor="{anchor}" font-weight="{weight}"{" " if more else ""}{more}>'
        f"{escape(words)}</text>"
    )
