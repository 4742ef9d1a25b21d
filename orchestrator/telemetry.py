"""What happened while a run ran: `telemetry.jsonl`, one row a line, appended without fsync. Decides nothing.

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

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from orchestrator.durable import Tail, cut_torn_tail, write_whole
from orchestrator.lines import TelemetryLine, read
from orchestrator.progress import say

PHASES = ("setup", "ray", "load", "sampling")


class Telemetry:
    """Appends rows to one file. Not durable on purpose: losing rows loses no result, so where one cannot be written the
    run goes on without them and says so once."""

    def __init__(self, path: Path) -> None:
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []
        """Told of every row, written or not."""
        self._last: dict[str, Mapping[str, Any]] = {}
        self._path = path
        self._log: int | None = None
        try:
            cut_torn_tail(path)
            self._log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            self._give_up(error)

    def sample(self, worker: str, reading: Mapping[str, Any]) -> None:
        """One worker's health."""
        row = {"kind": "sample", "time": time.time(), "worker": worker, **reading}
        row |= rates(self._last.get(worker, {}), row)
        self._last[worker] = row
        self._write(row)

    def event(self, event: str, **fields: Any) -> None:
        """Something happened; `time` may be among the fields."""
        self._write({"kind": "event", "time": time.time(), "event": event, **fields})

    def close(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _write(self, row: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener(row)
        if self._log is None:
            return
        try:
            write_whole(self._log, (json.dumps(row) + "\n").encode())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        say(f"{self._path} cannot be written ({error.strerror}): going on without telemetry.")
        self.close()


def rates(last: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, float]:
    """What the counters of two samples of one worker say of the time between them; nothing across a restart."""
    seconds = row["time"] - last.get("time", row["time"])
    if seconds <= 0 or last.get("pid") != row.get("pid"):
        return {}
    names = {"tokens_per_second": "generated_tokens", "waiting_fraction": "idle_seconds"}
    return {
        name: (row[counter] - last[counter]) / seconds
        for name, counter in names.items()
        if row.get(counter) is not None and last.get(counter) is not None
    }


def read_telemetry(path: Path) -> list[dict[str, Any]]:
    """All rows of a telemetry file that can be read, in order; an empty list where there is none."""
    return readable(Tail(path).lines())


def readable(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The rows that can be read. A damaged line is no reason to refuse a report: no result depends on it."""
    rows = []
    for line in lines:
        with suppress(ValueError):
            rows.append(read(line, TelemetryLine))
    return rows


def timings(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each phase, added up over all starts of the run, whether they ended well or were killed.

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
