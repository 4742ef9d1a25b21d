"""Writing telemetry.jsonl: rows are appended without fsync and passed to listeners."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.console import say
from orchestrator.rundir.files import cut_torn_tail, write_whole
from orchestrator.rundir.telemetry_rows import TelemetryRow, WorkerState


class Telemetry:
    """Appends rows to a telemetry file. Not durable on purpose: losing rows loses no result, so if one cannot be
    written the run goes on without them and says so once."""

    def __init__(self, path: Path) -> None:
        self._listeners: tuple[Callable[[TelemetryRow], None], ...] = ()
        self._last: dict[str, WorkerState] = {}
        self._path = path
        self._log: int | None = None
        try:
            cut_torn_tail(path)
            self._log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            self._give_up(error)

    @contextmanager
    def heard_by(self, *listeners: Callable[[TelemetryRow], None]) -> Iterator[None]:
        """Within this context the listeners are called with every row, written or not."""
        self._listeners = listeners
        try:
            yield
        finally:
            self._listeners = ()

    def write_state(self, state: WorkerState) -> None:
        """Write what a worker says now, with its rates since its last row."""
        now = state.model_copy(update={"time": time.time()})
        if before := self._last.get(now.worker):
            now = now.model_copy(update=rates(before, now))
        self._last[now.worker] = now
        self.write(now)

    def write(self, row: TelemetryRow) -> None:
        """Write a row."""
        for listener in self._listeners:
            listener(row)
        if self._log is None:
            return
        try:
            write_whole(self._log, row.line())
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _give_up(self, error: OSError) -> None:
        say(f"{self._path} cannot be written ({error.strerror}): going on without telemetry.")
        self.close()


def rates(before: WorkerState, now: WorkerState) -> dict[str, float]:
    """Rates between two samples of one worker, from the counters in them; empty across a restart."""
    seconds = now.time - before.time
    if seconds <= 0 or before.pid != now.pid:
        return {}
    counters = {
        "tokens_per_second": (before.generated_tokens, now.generated_tokens),
        "waiting_fraction": (before.idle_seconds, now.idle_seconds),
    }
    return {
        name: (last - first) / seconds
        for name, (first, last) in counters.items()
        if first is not None and last is not None
    }
