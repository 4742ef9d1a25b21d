"""The timeline of a run: one clock over its starts, curves where their values are, an explained mark for each event."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from evals.types import MemoryReading
from orchestrator.report.make import write_report
from orchestrator.report.timeline import HEIGHT, MAX_WORKERS, TOP, moments, timeline
from orchestrator.rundir.telemetry_rows import Event, EventName, TelemetryRow, WorkerState
from support.made_up import make_record, make_run, write

SVG = "{http://www.w3.org/2000/svg}"


def event(time: float, event: EventName, **fields: Any) -> Event:
    return Event(event=event, time=time, **fields)


def sample(time: float, worker: str = "gpu0", **changes: Any) -> WorkerState:
    memory = MemoryReading(1, 1, total_bytes=80 << 30, free_bytes=20 << 30)
    row = WorkerState(time=time, worker=worker, pid=1, active_slots=5, slots=10, utilisation=1.0, memory=memory)
    return row.model_copy(update=changes)


def tree(rows: Sequence[TelemetryRow]) -> ElementTree.Element:
    svg = timeline(rows)
    assert svg is not None
    return ElementTree.fromstring(svg)


def words(root: ElementTree.Element) -> list[str]:
    return [node.text or "" for node in root.iter(f"{SVG}text")]


def curves(root: ElementTree.Element) -> list[str]:
    return [node.get("d", "") for node in root.iter(f"{SVG}path") if node.get("fill") == "none"]


def test_the_clock_stands_still_between_starts() -> None:
    rows = [event(100, "start"), sample(110), event(1000, "start"), sample(1005)]
    assert [moment.at for moment in moments(rows)] == [0, 10, 10, 15]


def test_values_are_shares_of_what_there_is() -> None:
    root = tree([event(0, "start"), sample(60), sample(62)])
    heights = [float(curve[1:].split("L")[0].split()[1].partition("h")[0]) for curve in curves(root)]
    assert heights == [TOP + HEIGHT * (1 - share) for share in (0.75, 1.0, 0.5)]
    said = words(root)
    assert "GPU memory (100 % = 80.00 GiB)" in said
    assert "slots in use (100 % = 10)" in said


def test_curves_break_where_a_process_ends_or_says_nothing() -> None:
    rows = [sample(0), sample(2), sample(4, pid=2), sample(90, pid=2), sample(92, pid=2)]
    assert len(curves(tree(rows))) == 3 * 3


def test_every_event_has_a_mark_at_its_worker_with_its_reason() -> None:
    rows = [
        event(0, "start"),
        sample(60),
        sample(60, "gpu1"),
        event(70, "death", worker="gpu1", reason="illegal <address>\nand a traceback"),
        *(event(70, "requeue", worker="gpu1", problem_id=i) for i in range(12)),
        event(80, "stop", signal="SIGTERM"),
    ]
    root = tree(rows)
    marks = {
        node.get("class"): node.findtext(f"{SVG}title") or "" for node in root.iter(f"{SVG}g") if node.get("class")
    }
    assert marks["death"] == "70.0 s: worker died: illegal <address>"
    assert marks["requeue"].splitlines()[::10] == ["70.0 s: asked again problem 0", "and 2 more"]
    assert marks["stop"] == "80.0 s: stop by a signal: SIGTERM"
    assert [word for word in words(root) if ": " in word] == [
        "stop by a signal: 1, start: 1",
        "worker died: 1, asked again: 12",
        "stop by a signal: 1, start: 1",
    ]


def test_cpu_workers_unknown_devices_and_many_workers() -> None:
    rss = {"memory": MemoryReading(3 << 29, 3 << 29), "utilisation": None}
    said = words(tree([sample(t, f"cpu{i}", **rss) for t in (0, 2) for i in range(MAX_WORKERS + 3)]))
    assert said.count("memory (100 % = highest, 1.50 GiB)") == MAX_WORKERS
    assert not any("busy" in word for word in said)
    assert said[-1] == "minutes of work and 3 more workers"
    assert timeline([event(0, "start")]) is None
    assert timeline([]) is None


@pytest.mark.parametrize("sampled", [True, False])
def test_the_report_links_it_where_there_is_one(sampled: bool, tmp_path: Path) -> None:
    directory = write(tmp_path / "run", make_run(), [make_record(0)])
    rows = [event(0, "start"), *([sample(1)] if sampled else [])]
    (directory / "telemetry.jsonl").write_bytes(b"".join(row.line() for row in rows))
    assert ("[timeline.svg](timeline.svg)" in write_report([directory])) == sampled
    assert (directory / "timeline.svg").exists() == sampled
