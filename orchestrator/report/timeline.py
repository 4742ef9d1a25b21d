"""Draws the timeline of a run as SVG text: memory, utilisation, slots and events of each worker over time.

The time axis has the run's starts one after the other, without the pauses between them. Every mark has its reason as a
tooltip.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby
from statistics import fmean
from typing import Generic, NamedTuple, TypeVar

from orchestrator.report.svg import COLOURS, Axis, axis, document, frame, key, path, text
from orchestrator.rundir.reading.telemetry import worker_order
from orchestrator.rundir.telemetry_rows import Event, TelemetryRow, WorkerState
from orchestrator.wording import duration, gib

Place = tuple[float, float]

LEFT, RIGHT, TOP, HEIGHT, FOOT = 52, 640, 26, 84, 28  # of a worker's plot, in pixels
STEP = TOP + HEIGHT + FOOT
MAX_WORKERS = 64  # drawn; a larger figure would be unreadable
GAP_SECONDS = 30.0  # samples further apart than this are not joined
CURVES = {"memory": COLOURS[0], "utilisation": COLOURS[1], "slots": COLOURS[2]}
MARKS = {
    "start": ("start", COLOURS[7]),
    "stop": ("stop by a signal", COLOURS[7]),
    "torn_tail": ("half line removed", COLOURS[7]),
    "spawn": ("worker started", COLOURS[4]),
    "ready": ("worker ready", COLOURS[4]),
    "slots": ("slots changed", COLOURS[5]),
    "requeue": ("asked again", COLOURS[5]),
    "retry": ("tried again", COLOURS[5]),
    "oom": ("out of memory", COLOURS[3]),
    "hang": ("worker hung", COLOURS[3]),
    "failed": ("problem failed", COLOURS[3]),
    "death": ("worker died", COLOURS[6]),
    "lost": ("worker given up", COLOURS[6]),
}
"""Events that are drawn -> their words and colours; the graver come later."""


AnyRow = TypeVar("AnyRow", bound=TelemetryRow, covariant=True)


class Moment(NamedTuple, Generic[AnyRow]):
    """A telemetry row and its time: seconds of work on the run until then."""

    at: float
    row: AnyRow


def moments(rows: Iterable[TelemetryRow]) -> list[Moment[TelemetryRow]]:
    """The rows with their times on one clock, which stops between the starts of a run."""
    timed: list[Moment[TelemetryRow]] = []
    origin: float | None = None
    for row in rows:
        if origin is None or (isinstance(row, Event) and row.event == "start"):
            origin = row.time - max((moment.at for moment in timed), default=0.0)
        timed.append(Moment(max(0.0, row.time - origin), row))
    return timed


def timeline(rows: Iterable[TelemetryRow]) -> str | None:
    """SVG text with a plot for each worker; None without a telemetry row of a worker."""
    timed = moments(rows)
    samples: dict[str, list[Moment[WorkerState]]] = defaultdict(list)
    events: dict[str, list[Moment[Event]]] = defaultdict(list)
    for at, row in timed:
        if isinstance(row, WorkerState):
            samples[row.worker].append(Moment(at, row))
        elif row.event in MARKS:
            events[row.worker].append(Moment(at, row))
    workers = sorted(samples, key=worker_order)
    if not workers:
        return None
    time = axis([0.0, max(moment.at for moment in timed) / 60], LEFT, RIGHT)
    more = f"and {len(workers) - MAX_WORKERS} more workers" if len(workers) > MAX_WORKERS else ""
    height = STEP * min(len(workers), MAX_WORKERS) + FOOT
    lines: list[str] = []
    for i, worker in enumerate(workers[:MAX_WORKERS]):
        marks = sorted([*events[""], *events[worker]], key=lambda moment: moment.at)
        lines += [f'<g transform="translate(0 {STEP * i})">', *panel(worker, samples[worker], marks, time), "</g>"]
    lines.append(text((LEFT + RIGHT) / 2, height - 8, f"minutes of work {more}".strip(), "middle"))
    return document("Workers over time", height, lines)


def panel(
    worker: str, samples: Sequence[Moment[WorkerState]], events: Sequence[Moment[Event]], time: Axis
) -> Iterator[str]:
    """One worker's plot: curves in % of what there is, marks of events, and the legend."""
    share = Axis(0, 100, TOP + HEIGHT, TOP, False, [0, 50, 100])
    yield from frame(time, share, worker, unit=" %")
    curves = curve_scales([moment.row for moment in samples])
    for i, (name, (full, words)) in enumerate(curves.items()):
        for points in curve_segments(samples, name, full, time, share):
            x, y = points[-1]
            yield path([*points, (x + 1, y)], CURVES[name])  # so that one point alone can be seen, too
        yield key(RIGHT + 16, TOP + 6 + 17 * i, words, CURVES[name])
    yield from draw_events(events, time, 17 * len(curves))


def curve_scales(rows: Sequence[WorkerState]) -> dict[str, tuple[float, str]]:
    """Curves for which there are values -> what 100 % of each is, as a number, and its legend."""
    curves: dict[str, tuple[float, str]] = {}
    memories = [row.memory for row in rows]
    if size := max(memory.total_bytes or memory.rss_bytes or 0 for memory in memories):
        words = "GPU memory (100 % = {})" if memories[-1].total_bytes else "memory (100 % = highest, {})"
        curves["memory"] = size, words.format(gib(size))
    if any(row.utilisation is not None for row in rows):
        curves["utilisation"] = 1.0, "GPU busy (share of the time)"
    if slots := max(row.slots or 0 for row in rows):
        curves["slots"] = slots, f"slots in use (100 % = {slots})"
    return curves


def curve_segments(
    samples: Sequence[Moment[WorkerState]], name: str, full: float, time: Axis, share: Axis
) -> Iterator[list[Place]]:
    """Joined points of a curve, one a pixel (the mean of its samples); it breaks at gaps and where a process ends."""
    number, last, parts = 0, samples[0], []
    for moment in samples:
        row = moment.row
        number += moment.at - last.at > GAP_SECONDS or row.pid != last.row.pid
        last = moment
        shown = {"memory": row.device_bytes, "utilisation": row.utilisation, "slots": row.active_slots}[name]
        if shown is not None:
            parts.append((number, round(time.at(moment.at / 60)), min(100.0, 100 * shown / full)))
    for _, piece in groupby(parts, key=lambda part: part[0]):
        columns = groupby(piece, key=lambda part: part[1])
        yield [(x, share.at(fmean(part[2] for part in column))) for x, column in columns]


def draw_events(events: Sequence[Moment[Event]], time: Axis, below: float) -> Iterator[str]:
    """A mark for each kind of event in each pixel, its reasons as a tooltip, and how many there are of each."""
    order = list(MARKS)
    places: dict[tuple[int, int], list[str]] = defaultdict(list)
    for at, row in events:
        reason = (row.reason or row.signal).strip().partition("\n")[0][:200]
        problem = "" if row.problem_id is None else f" problem {row.problem_id}"
        words = f"{duration(at)}: {MARKS[row.event][0]}{problem}{': ' if reason else ''}{reason}"
        places[order.index(row.event), round(time.at(at / 60))].append(words)
    for (kind, x), words in sorted(places.items()):
        shown = escape("\n".join(words[:10] + [f"and {len(words) - 10} more"] * (len(words) > 10)))
        event, colour = order[kind], MARKS[order[kind]][1]
        yield (
            f'<g class="{event}" stroke="{colour}" fill="{colour}"><title>{shown}</title>'
            f'<path d="M{x} {TOP}V{TOP + HEIGHT}M{x - 4} {TOP - 6}h8l-4 6z"/></g>'
        )
    counts = Counter(row.event for _, row in events)
    legend = [f"{MARKS[event][0]}: {counts[event]}" for event in reversed(order) if counts[event]]
    for i in range(0, len(legend), 2):
        yield text(RIGHT + 12, TOP + 10 + below + 8.5 * i, ", ".join(legend[i : i + 2]))
