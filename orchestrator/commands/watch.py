"""`powersample watch RUN`: shows the progress of a run that another process drives, from its files alone.

Reads run.json, records.jsonl and telemetry.jsonl as they grow; writes nothing and takes no lock.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from evals.grading.grade import score_name
from evals.record import Record
from evals.types import UserError
from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.live.progress import Progress
from orchestrator.rundir.directory import RECORDS, TELEMETRY, check_lock
from orchestrator.rundir.files import Tail
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.reading.records import RecordLog
from orchestrator.rundir.reading.telemetry import readable
from orchestrator.rundir.telemetry_rows import Event

LOOK_SECONDS = 0.5
SILENT_SECONDS = 60.0
"""A run that samples writes a row every few seconds; one that loads may be silent, and so is one that was killed."""


class RunWatcher:
    """A run directory that is read as it grows. Raises UserError if it is none."""

    def __init__(self, directory: Path) -> None:
        run = Manifest.read(directory)
        self._directory = directory
        self._log, self._rows = RecordLog(directory / RECORDS), Tail(directory / TELEMETRY)
        self.phase, self.last_time = "", 0.0
        self._extent = run.extent
        name, score = run.name or directory.name, score_name(PRIMARY_METRIC, run.task)
        self.progress = Progress(name, run.extent.total, self._new_records(), sys.stdout, score)
        self.poll()

    @property
    def driven(self) -> bool:
        """Whether a process drives the run, that is, holds its lock."""
        try:
            check_lock(self._directory)
        except UserError:
            return True
        return False

    @property
    def active(self) -> bool:
        """Whether answers are owed and the run has neither ended nor been stopped."""
        return self.progress.num < self.progress.total and self.phase not in ("end", "stopped")

    def silence(self) -> str:
        """A sentence for the user if a run that should be active has written nothing for a while, else nothing."""
        if self.progress.num < self.progress.total and not self.driven:
            return "No process works on this run: it was stopped or killed; the command that started it goes on."
        seconds = time.time() - self.last_time
        if not self.active or seconds < SILENT_SECONDS:
            return ""
        return f"Nothing new for {seconds:.0f} s: it loads, or it was killed and goes on when it is started again."

    def poll(self) -> None:
        """Read what was appended to the files since the last look."""
        for record in self._new_records():
            self.progress.add(record)
        for row in readable(self._rows.lines()):
            self.progress.add_row(row)
            self.last_time = row.time
            if isinstance(row, Event) and row.event in ("phase", "stop"):
                self.phase = row.name or "stopped"

    def _new_records(self) -> list[Record]:
        """Those that were added and asked for last."""
        return [record for record in self._log.read() if record.key in self._extent]


def watch(args: Namespace, sleep: Callable[[float], object] = time.sleep) -> int:
    """Show the run until it is complete or stopped, or until Ctrl-C; with `once` as it is now. Returns 0."""
    watched, said = RunWatcher(args.run), ""
    try:
        while watched.active and watched.driven and not args.once:
            if not said and (said := watched.silence()):
                print(said, file=sys.stderr)
            sleep(LOOK_SECONDS)
            watched.poll()
            watched.progress.refresh()
    except KeyboardInterrupt:
        print(file=sys.stderr)
    if not watched.driven:
        watched.progress.clear_workers()
    if args.once:
        print("\n".join(filter(None, (watched.progress.as_text(), watched.silence()))))
        return 0
    watched.progress.close()
    if not watched.driven and (said := watched.silence()):
        print(said, file=sys.stderr)
    return 0
