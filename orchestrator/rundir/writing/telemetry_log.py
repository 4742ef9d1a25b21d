"""Writing telemetry.jsonl: rows are appended without fsync and passed to listeners."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.console import say
from orchestrator.rundir.files import cut_torn_tail, write_whole


class Telemetry:
    """Appends rows to a telemetry file. Not durable on purpose: losing rows loses no result, so if one cannot be
    written the run goes on without them and says so once."""

    def __init__(self, path: Path) -> None:
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []
        """Called with every row, written or not."""
        self._last: dict[str, Mapping[str, Any]] = {}
        self._path = path
        self._log: int | None = None
        try:
            cut_torn_tail(path)
            self._log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            self._give_up(error)

    def sample(self, worker: str, reading: Mapping[str, Any]) -> None:
        """Write a row of one worker's health, with its rates since its last row."""
        row = {"kind": "sample", "time": time.time(), "worker": worker, **reading}
        row |= rates(self._last.get(worker, {}), row)
        self._last[worker] = row
        self._write(row)

    def event(self, event: str, **fields: Any) -> None:
        """Write a row of an event; `time` may be among the fields."""
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
    """Rates between two samples of one worker, from the counters in them; empty across a restart."""
    seconds = row["time"] - last.get("time", row["time"])
    if seconds <= 0 or last.get("pid") != row.get("pid"):
        return {}
    names = {"tokens_per_second": "generated_tokens", "waiting_fraction": "idle_seconds"}
    return {
        name: (row[counter] - last[counter]) / seconds
        for name, counter in names.items()
        if row.get(counter) is not None and last.get(counter) is not None
    }
