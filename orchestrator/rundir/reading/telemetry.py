"""Reading telemetry.jsonl, see `rundir/telemetry_rows.py`, and adding up the seconds of a run's phases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from orchestrator.rundir.files import Tail
from orchestrator.rundir.telemetry_rows import ROW, Event, EventName, TelemetryRow

PHASES = ("setup", "ray", "load", "sampling")


@dataclass(frozen=True, kw_only=True)
class PhaseTimes:
    """Seconds of a run's phases over all its starts, None where they are unknown."""

    setup_seconds: float | None = None
    ray_seconds: float | None = None
    load_seconds: float | None = None
    sampling_seconds: float | None = None
    total_seconds: float | None = None
    """Of these four."""
    num_starts: int
    tail_seconds: float | None = None
    """The part of the last start's sampling in which a slot had nothing left to do; 0 if none was."""


def read_telemetry(path: Path) -> list[TelemetryRow]:
    """All rows of a telemetry file that can be read, in order; an empty list where there is none."""
    return readable(Tail(path).lines())


def readable(lines: Iterable[bytes]) -> list[TelemetryRow]:
    """The rows that can be read. A damaged line is no reason to refuse a report: no result depends on it."""
    rows = []
    for line in lines:
        with suppress(ValueError):
            rows.append(ROW.validate_json(line))
    return rows


def events(rows: Iterable[TelemetryRow], *names: EventName) -> list[Event]:
    """The events of these names."""
    return [row for row in rows if isinstance(row, Event) and row.event in names]


def timings(rows: Sequence[TelemetryRow]) -> PhaseTimes:
    """Seconds of each phase, added up over all starts of the run, also those that were killed."""
    starts: list[list[TelemetryRow]] = []
    seconds = dict.fromkeys(PHASES, 0.0)
    for row in rows:
        if isinstance(row, Event) and row.event == "start":
            starts.append([])
        if starts:
            starts[-1].append(row)
    for start in starts:
        marks = [(row.name, row.time) for row in events(start, "phase")]
        for (name, began), (_, until) in pairwise([*marks, ("end", max(row.time for row in start))]):
            if name in seconds:
                seconds[name] += max(0.0, until - began)
    tails = [row.seconds for row in events(rows, "tail")]
    return PhaseTimes(
        **{f"{name}_seconds": value for name, value in seconds.items()},
        total_seconds=sum(seconds.values()),
        num_starts=len(starts),
        tail_seconds=tails[-1] if tails else 0.0,
    )


def worker_order(worker: str) -> tuple[str, int]:
    """Key by which workers are sorted: gpu2 before gpu10."""
    kind = worker.rstrip("0123456789")
    return kind, int(worker[len(kind) :] or 0)
