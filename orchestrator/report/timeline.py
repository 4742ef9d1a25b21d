"""The timeline of a run: memory, utilisation, slots and events of each worker over time, and the events as a table.

The time axis has the run's starts one after the other, without the pauses between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import ceil, nan
from statistics import fmean
from typing import TYPE_CHECKING

from evals.sizing.slots import gib
from orchestrator.report.layout import Table
from orchestrator.report.plotting import COLOURS, WIDTH, look
from orchestrator.rundir.reading.telemetry import worker_order
from orchestrator.rundir.telemetry_rows import Event, TelemetryRow, WorkerState
from orchestrator.wording import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

States = Sequence[tuple[float, WorkerState]]

MAX_WORKERS = 64  # drawn; a larger figure would be unreadable
MAX_ROWS = 50  # of the table of events
MAX_PROBLEMS = 10  # named in one of its rows
PIXELS = 600  # of the time axis; a curve has one point in each
LEGEND_COLUMNS = 4
TOP = 105.0  # of a plot in %, so that a curve at 100 can be seen
GAP_SECONDS = 30.0  # states further apart than this are not joined
CURVES = {"memory": COLOURS[0], "GPU busy (share of the time)": COLOURS[1], "slots in use": COLOURS[2]}
MARKS = {
    "start": ("start", COLOURS[7], ">"),
    "stop": ("stop by a signal", COLOURS[7], "s"),
    "torn_tail": ("half line removed", COLOURS[7], "|"),
    "spawn": ("worker started", COLOURS[4], "^"),
    "ready": ("worker ready", COLOURS[4], "o"),
    "slots": ("slots changed", COLOURS[5], "D"),
    "requeue": ("asked again", COLOURS[5], "<"),
    "retry": ("tried again", COLOURS[5], ">"),
    "oom": ("out of memory", COLOURS[3], "P"),
    "hang": ("worker hung", COLOURS[3], "s"),
    "failed": ("problem failed", COLOURS[3], "X"),
    "death": ("worker died", COLOURS[6], "v"),
    "lost": ("worker given up", COLOURS[6], "X"),
}
"""Events that are shown -> their words, colours and marks; the graver come later."""


def clock(rows: Iterable[TelemetryRow]) -> list[float]:
    """Seconds of work on the run until each row; the clock stops between the starts of a run."""
    times: list[float] = []
    origin = None
    for row in rows:
        if origin is None or (isinstance(row, Event) and row.event == "start"):
            origin = row.time - max(times, default=0.0)
        times.append(max(0.0, row.time - origin))
    return times


def workers(rows: Iterable[TelemetryRow]) -> list[str]:
    """The workers that have said how they were, in order."""
    return sorted({row.worker for row in rows if isinstance(row, WorkerState)}, key=worker_order)


def event_table(rows: Sequence[TelemetryRow]) -> Table:
    """When what happened to whom and why, what befell several problems in one row; of very many rows the gravest."""
    happened: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for at, row in zip(clock(rows), rows, strict=True):
        if isinstance(row, Event) and row.event in MARKS:
            reason = (row.reason or row.signal).strip().partition("\n")[0][:200]
            problems = happened[duration(at), row.worker or "all", row.event, reason]
            problems += [] if row.problem_id is None else [str(row.problem_id)]
    gravest = set(sorted(happened, key=lambda one: -list(MARKS).index(one[2]))[:MAX_ROWS])
    cells = []
    for (time, worker, event, reason), problems in happened.items():
        more = f" and {len(problems) - MAX_PROBLEMS:,} more" if len(problems) > MAX_PROBLEMS else ""
        if (time, worker, event, reason) in gravest:
            cells.append([time, worker, MARKS[event][0], ", ".join(problems[:MAX_PROBLEMS]) + more, reason])
    if len(happened) > MAX_ROWS:
        cells.append(["", "", f"and {len(happened) - MAX_ROWS:,} more", "", "telemetry.jsonl has all"])
    return Table(["time", "worker", "event", "problem", "reason"], cells)


@look()
def timeline(rows: Sequence[TelemetryRow]) -> Figure:
    """A plot for each worker, one below the other and under one legend; there must be a state of a worker in `rows`."""
    from matplotlib.figure import Figure

    names, times = workers(rows), clock(rows)
    states: dict[str, list[tuple[float, WorkerState]]] = defaultdict(list)
    events: dict[str, list[tuple[float, Event]]] = defaultdict(list)
    for at, row in zip(times, rows, strict=True):
        if isinstance(row, WorkerState):
            states[row.worker].append((at, row))
        else:
            events[row.worker].append((at, row))
    num_plots, minutes = min(len(names), MAX_WORKERS), max(1.0, *times) / 60
    pixel = minutes / PIXELS
    figure = Figure()  # without a layout engine: for many plots it takes seconds
    plots = figure.subplots(num_plots, sharex=True, sharey=True, squeeze=False)[:, 0]
    for worker, axes in zip(names, plots, strict=False):
        axes.set_title(worker)
        draw_curves(axes, states[worker], pixel)
        for event, (words, colour, shape) in MARKS.items():
            happened = [at / 60 for at, row in events[""] + events[worker] if row.event == event]
            if at := sorted({round(one / pixel) * pixel for one in happened}):
                axes.vlines(at, 0, TOP, colour, linewidth=0.8)
                axes.plot(at, [TOP] * len(at), shape, color=colour, clip_on=False, label=words)
    plots[0].set(xlim=(-0.01 * minutes, 1.01 * minutes), ylim=(0, TOP), yticks=(0, 50, 100))
    plots[0].yaxis.set_major_formatter("{x:.0f} %")
    more = f" and {len(names) - num_plots} more workers" if len(names) > num_plots else ""
    plots[-1].set_xlabel(f"minutes of work{more}")
    drawn = {str(line.get_label()): line for axes in plots for line in axes.lines}
    words = [word for word in (*CURVES, *(word for word, *_ in reversed(MARKS.values()))) if word in drawn]
    figure.legend([drawn[word] for word in words], words, ncols=LEGEND_COLUMNS)
    above = 0.35 + 0.2 * ceil(len(words) / LEGEND_COLUMNS)
    height = above + num_plots + 0.2  # inches
    figure.set_size_inches(WIDTH, height)
    figure.subplots_adjust(0.55 / WIDTH, 0.45 / height, 1 - 0.1 / WIDTH, 1 - above / height, hspace=0.5)
    return figure


def draw_curves(axes: Axes, states: States, pixel: float) -> None:
    """One worker's curves in % of what there is, and in words what that is; a `pixel` is so many minutes."""
    memories = [row.memory for _, row in states]
    size = max(memory.total_bytes or memory.rss_bytes or 0 for memory in memories)
    slots = max(row.slots or 0 for _, row in states)
    kind = "of GPU memory" if memories[-1].total_bytes else "of memory, its highest"
    axes.set_title(f"100 % = {gib(size)} {kind}; {slots} slots", loc="right", size="small", weight="normal")
    values = zip(*((row.device_bytes, row.utilisation, row.active_slots) for _, row in states), strict=True)
    for (name, colour), of_curve, whole in zip(CURVES.items(), values, (size, 1, slots), strict=True):
        if points := curve(states, of_curve, whole, pixel):
            axes.plot(*zip(*points, strict=True), color=colour, label=name)


def curve(states: States, values: Sequence[float | None], whole: float, pixel: float) -> list[tuple[float, float]]:
    """Minutes and % of `whole`, one point a pixel (the mean of its states); nan at gaps and where a process ends."""
    piece, last = 0, states[0]
    columns: dict[tuple[int, int], list[float]] = defaultdict(list)
    for (at, row), value in zip(states, values, strict=True):
        piece += at - last[0] > GAP_SECONDS or row.pid != last[1].pid
        last = at, row
        if value is not None and whole:
            columns[piece, round(at / 60 / pixel)].append(min(100.0, 100 * value / whole))
    points, before = [], None
    for (piece, x), values in columns.items():
        if piece != before:  # begin a pixel to the left, so that one point alone can be seen, too
            points += [(nan, nan), ((x - 1) * pixel, fmean(values))]
        points.append((x * pixel, fmean(values)))
        before = piece
    return points
