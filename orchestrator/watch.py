"""`powersample watch RUN`: the bar and the table of a run that another process drives, from the run's files alone.
Knows no driver.

Reads run.json, records.jsonl and telemetry.jsonl as they grow; writes nothing and takes no lock.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from evals.types import UserError
from orchestrator.claim import RECORDS, TELEMETRY, check_lock
from orchestrator.durable import Tail
from orchestrator.progress import Progress
from orchestrator.run_record import RunRecord
from orchestrator.store import RecordLog
from orchestrator.telemetry import readable

LOOK_SECONDS = 0.5
SILENT_SECONDS = 60.0
"""A run that samples writes a row every few seconds; one that loads may be silent, and so is one that was killed."""


class Watched:
    """A run directory being read. Raises UserError if it is none."""

    def __init__(self, directory: Path) -> None:
        run = RunRecord.read(directory)
        self._directory = directory
        self._log, self._rows = RecordLog(directory / RECORDS), Tail(directory / TELEMETRY)
        self.phase, self.last_time = "", 0.0
        total = run.num_problems * run.num_samples
        self.progress = Progress(run.name or directory.name, total, self._log.read(), sys.stdout)
        self.look()

    @property
    def driven(self) -> bool:
        """Does a process hold the run?"""
        try:
            check_lock(self._directory)
        except UserError:
            return True
        return False

    @property
    def active(self) -> bool:
        """Is there anything to wait for?"""
        return self.progress.num < self.progress.total and self.phase not in ("end", "stopped")

    def silence(self) -> str:
        """A sentence if a run that should be active has said nothing for a while."""
        if self.progress.num < self.progress.total and not self.driven:
            return "No process works on this run: it was stopped or killed; the command that started it goes on."
        seconds = time.time() - self.last_time
        if not self.active or seconds < SILENT_SECONDS:
            return ""
        return f"Nothing new for {seconds:.0f} s: it loads, or it was killed and goes on when it is started again."

    def look(self) -> None:
        """Take in what the files have gained."""
        for record in self._log.read():
            self.progress.add(record)
        for row in readable(self._rows.lines()):
            self.progress.row(row)
            self.last_time = row["time"]
            if row.get("event") in ("phase", "stop"):
                self.phase = row.get("name", "stopped")


def watch(args: Namespace, sleep: Callable[[float], object] = time.sleep) -> int:
    """Show the run until it is complete or stopped, or until Ctrl-C; with `once` as it is now. Returns 0."""
    watched, said = Watched(args.run), ""
    try:
        while watched.active and watched.driven and not args.once:
            if not said and (said := watched.silence()):
                print(said, file=sys.stderr)
            sleep(LOOK_SECONDS)
            watched.look()
            watched.progress.refresh()
    except KeyboardInterrupt:
        print(file=sys.stderr)
    if not watched.driven:
        watched.progress.forget()
    if args.once:
        print("\n".join(filter(None, (watched.progress.frame(), watched.silence()))))
        return 0
    watched.progress.close()
    if not watched.driven and (said := watched.silence()):
        print(said, file=sys.stderr)
    return 0
