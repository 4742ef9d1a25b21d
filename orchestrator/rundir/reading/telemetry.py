"""Reading telemetry.jsonl, which says what happened while a run ran: one row a line, appended without fsync.

Rows, told apart by `kind`; every row has `time` in Unix seconds:

- `sample`: one worker's health at one moment: `worker` (its name), `rank`, `pid`, `host`, `device`, `steps`,
  `active_slots`, `slots`, `generated_tokens`, `memory` {fields of `MemoryReading`, in bytes}; of the whole device, None
  where NVML does not say: `utilisation` (0 to 1), `nvml_used_bytes`, `power_watts`, `temperature_celsius`; and what
  else `Worker.health` says. Over the time since the worker's last row: `tokens_per_second`, and `waiting_fraction` (the
  share in which the device waited for the host) where the engine counts `idle_seconds`.
- `event`: `event` names it; `reason` says why, where there is a reason:
  - `start`: a process began to work on this run (`pid`, `host`, `owed`, `done`, `num_workers`, `slots`, `inline`, and
    what it runs: `git_commit`, `git_dirty`, `versions` of the packages);
  - `phase`: from now on this process does `name`: `setup` (settings, model and data found, checked), `ray` (Ray and the
    actors start), `load` (weights, self-check), `waiting` (other runs have the workers), `sampling`, `end`;
  - of a `worker`: `spawn` (for the `number`-th time), `ready` (with `seconds` of the load), `death` (by its `cause`),
    `hang`, `oom`, `slots` (it takes another number), `lost` (it has no device to work on);
  - `requeue` (its worker died), `retry` (it raised), `failed`: a problem's (`problem_id`, `sample_index`);
  - `tail`: `seconds` from the first slot without work to the end;
  - `torn_tail` (`bytes`): an unfinished line that a crash had left in the log was cut; `stop` (`signal`).

A run that was killed has no `end` row: a phase lasts until the next phase of the same start or until its last row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from evals.record import read_line
from orchestrator.rundir.files import Tail
from orchestrator.rundir.schemas import TelemetryLine

PHASES = ("setup", "ray", "load", "sampling")


def read_telemetry(path: Path) -> list[dict[str, Any]]:
    """All rows of a telemetry file that can be read, in order; an empty list where there is none."""
    return readable(Tail(path).lines())


def readable(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The rows that can be read. A damaged line is no reason to refuse a report: no result depends on it."""
    rows = []
    for line in lines:
        with suppress(ValueError):
            rows.append(read_line(line, TelemetryLine).model_dump(exclude_unset=True))
    return rows


def timings(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each phase, added up over all starts of the run, also those that were killed.

    Keys: `setup_seconds`, `ray_seconds`, `load_seconds`, `sampling_seconds`, `total_seconds` (their sum), `num_starts`,
    and `tail_seconds`, the part of the last start's sampling in which a slot had nothing left to do (0 if none was).
    """
    starts: list[list[Mapping[str, Any]]] = []
    tail, seconds = 0.0, dict.fromkeys(PHASES, 0.0)
    for row in rows:
        if row.get("event") == "start":
            starts.append([])
        elif row.get("event") == "tail":
            tail = row["seconds"]
        if starts:
            starts[-1].append(row)
    for start in starts:
        marks = [(row["name"], row["time"]) for row in start if row.get("event") == "phase"]
        for (name, began), (_, until) in pairwise([*marks, ("end", max(row["time"] for row in start))]):
            if name in seconds:
                seconds[name] += max(0.0, until - began)
    named = {f"{name}_seconds": value for name, value in seconds.items()}
    return {**named, "total_seconds": sum(seconds.values()), "num_starts": len(starts), "tail_seconds": tail}


def process_bytes(reading: Mapping[str, Any]) -> int | None:
    """Bytes of memory that the worker's process holds: of its device if it has one, else of the host."""
    memory = reading.get("memory", {})
    reserved = memory.get("reserved_bytes")
    return memory.get("rss_bytes") if reserved is None else reserved


def device_bytes(reading: Mapping[str, Any]) -> int | None:
    """Bytes of memory in use on the worker's device, by all processes; without a device as `held`."""
    memory = reading.get("memory", {})
    total = memory.get("total_bytes")
    return total - memory.get("free_bytes", total) if total else process_bytes(reading)


def worker_order(worker: str) -> tuple[str, int]:
    """Key by which workers are sorted: gpu2 before gpu10."""
    kind = worker.rstrip("0123456789")
    return kind, int(worker[len(kind) :] or 0)
