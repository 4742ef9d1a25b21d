"""The store of a run's records: a durable log with one writer, and which answers are still owed.

`records.jsonl` holds one finished (problem, sample) a line; a record counts once its line ends in a newline. Which
process may write the directory is decided in ownership.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from pydantic import JsonValue

from evals.record import Record, RecordKey, encode
from evals.types import Problem, UserError
from orchestrator.rundir.directory import LOCK, RECORDS, TELEMETRY, check_lock, directory_errors
from orchestrator.rundir.files import cut_torn_tail, sync_directory, write_whole
from orchestrator.rundir.reading.records import first_records
from orchestrator.rundir.writing import ownership


class RunStore:
    """An open run directory, locked until `close`. Use `open_store`."""

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self.cut_bytes = cut_torn_tail(directory / RECORDS)
        """Bytes of an unfinished last line, left by a crash, that were cut off."""
        self.records = first_records(directory / RECORDS)
        self._lock = lock
        self._log = os.open(directory / RECORDS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._size = os.fstat(self._log).st_size
        sync_directory(directory)

    @property
    def telemetry_path(self) -> Path:
        return self.directory / TELEMETRY

    def owed(self, problems: Iterable[Problem], num_samples: int) -> list[tuple[Problem, int]]:
        """The (problem, sample index) pairs without a record, in the order of `problems`."""
        return [
            (problem, index)
            for problem in problems
            for index in range(num_samples)
            if (problem.problem_id, index) not in self.records
        ]

    def append(self, record: Record) -> bool:
        """Make `record` durable; False, and nothing written, if its key has one already (the first wins).

        Raises UserError if the line cannot be written whole and synced: it is removed, and the run cannot go on.
        """
        key = record.key
        if key in self.records:
            return False
        line = encode(record)
        try:
            write_whole(self._log, line)
            os.fsync(self._log)
        except OSError as error:
            with suppress(OSError):  # then a part of the line stays, which the next start cuts
                os.ftruncate(self._log, self._size)
            raise UserError(
                f"A record cannot be written to {self.directory / RECORDS} ({error.strerror}); the {len(self.records)} "
                "before it are kept: make room there, then start again to go on."
            ) from error
        self._size += len(line)
        self.records[key] = record
        return True

    def close(self) -> None:
        """Release the lock. The lock file stays: removing it would race with the next writer."""
        os.close(self._log)
        os.ftruncate(self._lock, 0)
        os.close(self._lock)


def open_store(directory: Path, run: Mapping[str, JsonValue]) -> RunStore:
    """Open or create the run in `directory` for this process alone.

    `run` is what run.json will say of a new run, its fingerprint included; of an existing one it says how far the run
    is to grow (see `extents.grown`). Raises UserError if the directory is not writable, lies inside or around another
    run, is held by another process, or has a run of another fingerprint or a damaged file.
    """
    with directory_errors(directory):
        ownership.check_location(directory)
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            ownership.take_lock(lock, directory)
            ownership.ensure_manifest(directory, run)
            return RunStore(directory, lock)
        except BaseException:
            os.close(lock)
            raise


def check_store(directory: Path, run: Mapping[str, JsonValue]) -> set[RecordKey]:
    """The keys of the answers that a run directory has. Raises the UserError that `open_store` would raise now, and
    writes nothing."""
    with directory_errors(directory):
        ownership.check_location(directory)
        check_lock(directory)
        ownership.same_run(directory, run)
        return set(first_records(directory / RECORDS))


def check_root(directories: Sequence[Path]) -> None:
    """Raises UserError if the directory that new runs would share holds other files."""
    root = directories[0].parent
    with directory_errors(root):
        if not any(directory.exists() for directory in directories):
            ownership.check_unused(root)


def fresh_directory(directory: Path) -> Path:
    """`directory` itself if nothing is there, else the first of directory-2, directory-3, … that does not exist."""
    beside = (directory.with_name(f"{directory.name}-{number}") for number in count(2))
    return next(candidate for candidate in chain([directory], beside) if not candidate.exists())
