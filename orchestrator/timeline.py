"""The timeline of a run as SVG text: memory, utilisation and slots of each worker over time, and what happened to it.

Reads telemetry rows; computes no result. Time is that of the run's starts one after the other: pauses between them are
left out. Every mark has its reason as a tooltip.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any, NamedTuple

from orchestrator.layout import duration, gib
from orchestrator.progress import by_number
from orchestrator.svg import COLOURS, Axis, axis, document, text

LEFT, RIGHT, TOP, HEIGHT, FOOT = 48, 640, 24, 84, 24  # of a worker's plot, in pixels
STEP = TOP + HEIGHT + FOOT
MAX_WORKERS = 64  # drawn; a larger figure is read by nobody
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
"""Events that are drawn, in words and their colours, the graver the later."""


class Moment(NamedTuple):
    """A row and when it was: seconds that the run had been worked on by then."""

    at: float
    row: Mapping[str, Any]


def moments(rows: Iterable[Mapping[str, Any]]) -> list[Moment]:
    """The rows on one clock that stands still between the starts of a run."""
    found: list[Moment] = []
    origin: float | None = None
    for row in rows:
        if origin is None or row.get("event") == "start":
            origin = row["time"] - max((moment.at for moment in found), default=0.0)
        found.append(Moment(max(0.0, row["time"] - origin), row))
    return found


def timeline(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """A plot for each worker, one below another; None where no worker has said how it is."""
    found = moments(rows)
    samples: dict[str, list[Moment]] = defaultdict(list)
    events: dict[str, list[Moment]] = defaultdict(list)
    for moment in found:
        if moment.row["kind"] == "sample":
            samples[moment.row["worker"]].append(moment)
        elif moment.row["event"] in MARKS:
            events[moment.row.get("worker", "")].append(moment)
    workers = sorted(samples, key=by_number)
    if not workers:
        return None
    time = axis([0.0, max(moment.at for moment in found) / 60], LEFT, RIGHT)
    more = f"and {len(workers) - MAX_WORKERS} more workers" if len(workers) > MAX_WORKERS else ""
    height = STEP * min(len(workers), MAX_WORKERS) + FOOT
    lines: list[str] = []
    for i, worker in enumerate(workers[:MAX_WORKERS]):
        marks = sorted([*events[""], *events[worker]], key=lambda moment: moment.at)
        lines += [f'<g transform="translate(0 {STEP * i})">', *panel(worker, samples[worker], marks, time), "</g>"]
    lines.append(text((LEFT + RIGHT) / 2, height - 8, f"minutes of work {more}".strip(), "middle"))
    return document("Workers over time", height, lines)


def panel(worker: str, samples: Sequence[Moment], events: Sequence[Moment], time: Axis) -> Iterator[str]:
    """One worker's plot: curves in % of what there is, marks of events, and the legend."""
    share = Axis(0, 100, TOP + HEIGHT, TOP, False, [0, 50, 100])
    yield text(LEFT, TOP - 8, worker, weight="bold")
    yield f'<rect x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{HEIGHT}" fill="none" stroke="#444"/>'
    for tick in time.ticks:
        yield f'<path d="M{time.at(tick)} {TOP}V{TOP + HEIGHT}" stroke="#ddd"/>'
        yield text(time.at(tick), TOP + HEIGHT + 14, f"{tick:,.10g}", "middle")
    for tick in share.ticks:
        yield f'<path d="M{LEFT} {share.at(tick)}H{RIGHT}" stroke="#ddd"/>'
        yield text(LEFT - 6, share.at(tick) + 4, f"{tick} %", "end")
    names = whole(samples)
    for i, (name, words) in enumerate(names.items()):
        for points in pieces(samples, name, time, share):
            way = "L".join(f"{x} {y}" for x, y in points)
            yield f'<path d="M{way}h1" fill="none" stroke="{CURVES[name]}" stroke-width="1.5"/>'
        yield f'<circle cx="{RIGHT + 16}" cy="{TOP + 6 + 17 * i}" r="4" fill="{CURVES[name]}"/>'
        yield text(RIGHT + 26, TOP + 10 + 17 * i, words)
    yield from draw_events(events, time, 17 * len(names))


def whole(samples: Sequence[Moment]) -> dict[str, str]:
    """The curves that there is something of, and what 100 % of each is."""
    rows = [moment.row for moment in samples]
    words = {}
    if size := max(map(memory_size, rows)):
        device = rows[-1]["memory"].get("total_bytes")
        words["memory"] = f"{'GPU memory' if device else 'memory'} (100 % = {'' if device else 'highest, '}{gib(size)})"
    if any(row.get("utilisation") is not None for row in rows):
        words["utilisation"] = "GPU busy (share of the time)"
    if slots := max(row.get("slots") or 0 for row in rows):
        words["slots"] = f"slots in use (100 % = {slots})"
    return words


def memory_size(row: Mapping[str, Any]) -> int:
    """Of the whole device, or what the process holds where there is none."""
    memory = row.get("memory", {})
    return memory.get("total_bytes") or memory.get("rss_bytes") or 0


def value(row: Mapping[str, Any], name: str, full: Mapping[str, float]) -> float | None:
    """A curve's value in %; None where the row does not say."""
    if name == "utilisation":
        used = row.get("utilisation")
    elif name == "slots":
        used = row.get("active_slots")
    else:
        memory = row.get("memory", {})
        device = memory.get("total_bytes")
        used = device - memory.get("free_bytes", device) if device else memory.get("rss_bytes")
    return None if used is None else min(100.0, 100 * used / full[name])


def pieces(samples: Sequence[Moment], name: str, time: Axis, share: Axis) -> Iterator[list[tuple[float, float]]]:
    """Joined points of a curve, one a pixel (the mean of its samples); it breaks at gaps and where a process ends."""
    full = {"utilisation": 1.0, "slots": max(moment.row.get("slots") or 0 for moment in samples)}
    full["memory"] = max(memory_size(moment.row) for moment in samples)
    number, last, parts = 0, samples[0], []
    for moment in samples:
        if moment.at - last.at > GAP_SECONDS or moment.row.get("pid") != last.row.get("pid"):
            number += 1
        last = moment
        if (y := value(moment.row, name, full)) is not None:
            parts.append((number, round(time.at(moment.at / 60)), y))
    for _, piece in groupby(parts, key=lambda part: part[0]):
        points = []
        for x, group in groupby(piece, key=lambda part: part[1]):
            ys = [part[2] for part in group]
            points.append((x, share.at(sum(ys) / len(ys))))
        yield points


def draw_events(events: Sequence[Moment], time: Axis, below: float) -> Iterator[str]:
    """A mark for each kind of event in each pixel, its reasons as a tooltip, and how many there are of each."""
    places: dict[tuple[int, str], list[str]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for at, row in events:
        reason = str(row.get("reason") or row.get("signal") or "").strip().partition("\n")[0][:200]
        problem = f" problem {row['problem_id']}" if "problem_id" in row else ""
        places[round(time.at(at / 60)), row["event"]].append(
            f"{duration(at)}: {MARKS[row['event']][0]}{problem}{': ' if reason else ''}{reason}"
        )
        counts[row["event"]] += 1
    for (x, event), words in sorted(places.items(), key=lambda item: list(MARKS).index(item[0][1])):
        shown = escape("\n".join(words[:10] + [f"and {len(words) - 10} more"] * (len(words) > 10)))
        yield (
            f'<g class="{event}" stroke="{MARKS[event][1]}" fill="{MARKS[event][1]}"><title>{shown}</title>'
            f'<path d="M{x} {TOP}V{TOP + HEIGHT}M{x - 4} {TOP - 6}h8l-4 6z"/></g>'
        )
    told = [
        f"{MARKS[event][0]}: {number}"
        for event, number in sorted(counts.items(), key=lambda item: -list(MARKS).index(item[0]))
    ]
    for i in range(0, len(told), 2):
        yield text(RIGHT + 12, TOP + 10 + below + 8.5 * i, ", ".join(told[i : i + 2]))
