"""The timeline of a run: one clock over its starts, curves where their values are, every event marked and explained."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Any, get_args

import pytest
from matplotlib.axes import Axes

from evals.types import MemoryReading
from orchestrator.report.make import write_report
from orchestrator.report.timeline import MARKS, MAX_ROWS, MAX_WORKERS, PIXELS, clock, event_table, timeline
from orchestrator.rundir.telemetry_rows import Event, EventName, WorkerState
from support.made_up import make_record, make_run, write
from support.pictures import check_readable, line, names, points

BUSY = "GPU busy (share of the time)"


def event(time: float, event: EventName, **fields: Any) -> Event:
    return Event(event=event, time=time, **fields)


def sample(time: float, worker: str = "gpu0", **changes: Any) -> WorkerState:
    memory = MemoryReading(1, 1, total_bytes=80 << 30, free_bytes=20 << 30)
    row = WorkerState(time=time, worker=worker, pid=1, active_slots=5, slots=10, utilisation=1.0, memory=memory)
    return row.model_copy(update=changes)


def pieces(axes: Axes, name: str) -> list[list[tuple[float, float]]]:
    """The joined points of a curve."""
    found: list[list[tuple[float, float]]] = []
    for x, y in line(axes, name):
        if isnan(x):
            found.append([])
        else:
            found[-1].append((x, y))
    return found


def test_the_clock_stands_still_between_starts() -> None:
    rows = [event(100, "start"), sample(110), event(1000, "start"), sample(1005)]
    assert clock(rows) == [0, 10, 10, 15]


def test_values_are_shares_of_what_there_is() -> None:
    [axes] = timeline([event(0, "start"), sample(60), sample(62)]).axes
    shown = {name: pieces(axes, name) for name in ("memory", BUSY, "slots in use")}
    assert {name: {y for _, y in piece} for name, [piece] in shown.items()} == {
        "memory": {75}, BUSY: {100}, "slots in use": {50},
    }  # fmt: skip
    assert shown["memory"][0][-1][0] == pytest.approx(62 / 60)
    assert axes.get_title(loc="left") == "gpu0"
    assert axes.get_title(loc="right") == "100 % = 80.00 GiB of GPU memory; 10 slots"


def test_curves_break_where_a_process_ends_or_says_nothing() -> None:
    rows = [sample(0), sample(2), sample(4, pid=2), sample(90, pid=2), sample(92, pid=2)]
    for name in ("memory", BUSY, "slots in use"):
        assert [len(set(piece)) > 1 for piece in pieces(timeline(rows).axes[0], name)] == [True] * 3, "none is a point"


def test_curves_of_long_runs_are_thinned_to_means() -> None:
    rows = [sample(i, utilisation=i % 2) for i in range(20_000)]
    [piece] = pieces(timeline(rows).axes[0], BUSY)
    assert len(piece) <= PIXELS + 2
    assert all(45 < y < 55 for _, y in piece)


def test_every_event_has_a_mark_at_its_worker() -> None:
    rows = [
        event(0, "start"),
        sample(60),
        sample(60, "gpu1"),
        event(72, "death", worker="gpu1", reason="illegal <address>"),
        *(event(72, "requeue", worker="gpu1", problem_id=i) for i in range(12)),
        event(90, "stop", signal="SIGTERM"),
    ]
    figure = timeline(rows)
    marks = [
        {str(one.get_label()): points(one) for one in axes.get_lines() if one.get_linestyle() == "None"}
        for axes in figure.axes
    ]
    assert [list(of_worker) for of_worker in marks] == [
        ["start", "stop by a signal"],
        ["start", "stop by a signal", "asked again", "worker died"],
    ]
    assert [[x for x, _ in at] for at in marks[1].values()] == [[0], [1.5], [1.2], [1.2]]
    assert names(figure.legends[0]) == [
        "memory", BUSY, "slots in use", "worker died", "asked again", "stop by a signal", "start",
    ]  # fmt: skip


def test_the_table_of_events_says_why() -> None:
    rows = [
        event(100, "start"),
        sample(160),
        event(170, "death", worker="gpu1", reason="illegal <address>\nand a traceback"),
        *(event(170, "requeue", worker="gpu1", problem_id=i) for i in range(12)),
        event(170, "phase", name="end"),
        event(900, "start"),
        event(1100, "stop", signal="SIGTERM"),
    ]
    assert event_table(rows).rows == [
        ["0.0 s", "all", "start", "", ""],
        ["70.0 s", "gpu1", "worker died", "", "illegal <address>"],
        ["70.0 s", "gpu1", "asked again", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more", ""],
        ["70.0 s", "all", "start", "", ""],
        ["4 min 30 s", "all", "stop by a signal", "", "SIGTERM"],
    ]
    assert event_table([sample(0)]).rows == []


def test_of_very_many_events_the_gravest_are_in_the_table() -> None:
    many = [event(i, "retry", worker="gpu0", problem_id=i) for i in range(MAX_ROWS + 20)]
    rows = [*many[:60], event(60, "death", worker="gpu0", reason="why"), *many[60:]]
    *shown, rest = event_table(rows).rows
    assert len(shown) == MAX_ROWS
    assert shown[-1][2:] == ["worker died", "", "why"], "in the order of time"
    assert rest[2] == "and 21 more"


def test_cpu_workers_unknown_devices_and_many_workers() -> None:
    rss = {"memory": MemoryReading(3 << 29, 3 << 29), "utilisation": None}
    figure = timeline([sample(t, f"cpu{i}", **rss) for t in (0, 2) for i in range(MAX_WORKERS + 3)])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"cpu{i}" for i in range(MAX_WORKERS)]
    assert {axes.get_title(loc="right") for axes in figure.axes} == {
        "100 % = 1.50 GiB of memory, its highest; 10 slots"
    }
    assert names(figure.legends[0]) == ["memory", "slots in use"]
    assert figure.axes[-1].get_xlabel() == "minutes of work and 3 more workers"


@pytest.mark.parametrize("num_workers", [1, 3, 12])
def test_it_can_be_read_with_every_event(num_workers: int) -> None:
    rows = [event(0, "start"), *(sample(600, f"gpu{i}") for i in range(num_workers))]
    check_readable(timeline(rows))
    events = [event(30 * i, name, worker="gpu0") for i, name in enumerate(get_args(EventName)) if name in MARKS]
    check_readable(timeline([*rows, *events]))


@pytest.mark.parametrize("sampled", [True, False])
def test_the_report_links_it_where_there_is_one(sampled: bool, tmp_path: Path) -> None:
    directory = write(tmp_path / "run", make_run(), [make_record(0)])
    rows = [event(0, "start"), *([sample(1)] if sampled else [])]
    (directory / "telemetry.jsonl").write_bytes(b"".join(row.line() for row in rows))
    assert ("[timeline.svg](timeline.svg)" in write_report([directory])) == sampled
    assert (directory / "timeline.svg").exists() == sampled
