"""A run directory: one writer, a durable log of records, and what is still owed. Knows no worker, engine or report.

`run.json` says what the run is (its `fingerprint` decides who may go on with it), `records.jsonl` holds one finished
(problem, sample) a line, `lock` names the process that writes. A record counts once its line ends in a newline.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evals.types import Problem, Record, UserError

RUN, RECORDS, TELEMETRY, LOCK = "run.json", "records.jsonl", "telemetry.jsonl", "lock"

DECIDING = (
    *(
        f"config.{name}"
        for name in ("model", "data", "limit", "num_samples", "seed", "sampler", "task", "engine.dtype")
    ),
    "provenance.model.sha256",
    "provenance.data.sha256",
)
"""What of run.json may make two runs differ, to be named in a refusal; the fingerprint alone decides."""

Key = tuple[int, int]
"""(problem_id, sample_index)."""


class RunStore:
    """An open run directory, locked until `close`. Use `open_store`."""

    def __init__(self, directory: Path, run: dict[str, Any], lock: int) -> None:
        self.directory = directory
        self.run = run
        self.cut_bytes = cut_torn_tail(directory / RECORDS)
        """Length of an unfinished last line that a crash had left and that was cut off."""
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

        Raises OSError when the line was not written whole (it is taken back) or not synced; either ends the run.
        """
        key = record.problem_id, record.sample_index
        if key in self.records:
            return False
        line = encode(record)
        written = os.write(self._log, line)
        if written != len(line):
            os.ftruncate(self._log, self._size)
            raise OSError(
                errno.ENOSPC, f"only {written} of {len(line)} bytes of a record fit", str(self.directory / RECORDS)
            )
        os.fsync(self._log)
        self._size += written
        self.records[key] = record
        return True

    def close(self) -> None:
        """Release the lock. The lock file stays: removing it would race with the next writer."""
        os.close(self._log)
        os.ftruncate(self._lock, 0)
        os.close(self._lock)


def open_store(directory: Path, fingerprint: str, run: Mapping[str, Any]) -> RunStore:
    """Open or create the run in `directory` for this process alone.

    `run` is what run.json will say of a new run (resolved configuration, provenance); an existing run.json is kept.
    Raises UserError: not writable, held by another process, a run of another fingerprint, or a damaged file.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            take_lock(lock, directory)
            return RunStore(directory, claim(directory, {**run, "fingerprint": fingerprint}), lock)
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise UserError(unusable(directory, error)) from error


def check_store(directory: Path, fingerprint: str, run: Mapping[str, Any]) -> None:
    """Raises the UserError with which `open_store` would refuse these arguments now, and writes nothing."""
    try:
        check_lock(directory)
        stored_run(directory, {**run, "fingerprint": fingerprint})
        first_records(directory / RECORDS)
    except OSError as error:
        raise UserError(unusable(directory, error)) from error


def unusable(directory: Path, error: OSError) -> str:
    """The sentence that refuses a directory which the system does not let us use."""
    return (
        f"The run directory {directory} cannot be written ({error.strerror}); choose another by POWERSAMPLE_RUN_DIR "
        "or --run-dir."
    )


def claim(directory: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """What run.json says, written now if the directory is new. Raises UserError if it says another fingerprint.

    A run without one answer is nobody's: another fingerprint takes its directory over, and its telemetry goes.
    """
    stored = stored_run(directory, wanted)
    if stored is not None:
        return stored
    (directory / TELEMETRY).unlink(missing_ok=True)
    write_atomically(directory / RUN, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")
    return wanted


def stored_run(directory: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """What run.json says of the wanted run; None if the directory may be taken. Raises UserError if it is another's."""
    stored = read_run(directory)
    if stored is None:
        if (directory / RECORDS).exists():
            raise UserError(
                f"{directory} has a {RECORDS} but no {RUN} that says whose it is; move it away or choose another "
                "directory by POWERSAMPLE_RUN_DIR or --run-dir."
            )
        return None
    if stored.get("fingerprint") == wanted["fingerprint"]:
        return stored
    if has_answer(directory / RECORDS):
        raise UserError(other_run(directory, stored, wanted))
    return None


def has_answer(path: Path) -> bool:
    """Is there a complete line in this log?"""
    return path.exists() and b"\n" in path.read_bytes()


def fresh_directory(directory: Path) -> Path:
    """`directory` itself if nothing is there, else the first of directory-2, directory-3, … that does not exist."""
    candidate, number = directory, 1
    while candidate.exists():
        number += 1
        candidate = directory.with_name(f"{directory.name}-{number}")
    return candidate


def take_lock(lock: int, directory: Path) -> None:
    """Lock the open lock file and write into it who holds it. Raises UserError naming the holder."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(held(lock, directory)) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def check_lock(directory: Path) -> None:
    """Raises UserError if a process holds the run; takes and changes nothing."""
    try:
        lock = os.open(directory / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(held(lock, directory)) from error
    finally:
        os.close(lock)


def held(lock: int, directory: Path) -> str:
    """The sentence that refuses a run which another process writes."""
    holder = os.read(lock, 200).decode(errors="replace").strip() or "another process"
    return (
        f"The run in {directory} is being written by {holder}; wait for it, stop it, or choose another directory "
        "by POWERSAMPLE_RUN_DIR or --run-dir."
    )


def read_run(directory: Path) -> dict[str, Any] | None:
    """What run.json says; None where there is none. Raises UserError if it is damaged."""
    try:
        run = json.loads((directory / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{directory / RUN} is not valid JSON ({error}); restore it or choose another directory."
        ) from error
    if not isinstance(run, dict):
        raise UserError(f"{directory / RUN} is not a JSON object; restore it or choose another directory.")
    return run


def read_records(path: Path) -> list[Record]:
    """All complete lines of a record log; what follows the last newline is not read. UserError names a bad line."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            records.append(decode(line))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: not a record ({error}); repair or remove that line (its problem is then owed "
                "again), or start over with --fresh."
            ) from error
    return records


def first_records(path: Path) -> dict[Key, Record]:
    """The records of a log that count, in its order: the first of each key."""
    first: dict[Key, Record] = {}
    for record in read_records(path):
        first.setdefault((record.problem_id, record.sample_index), record)
    return first


def encode(record: Record) -> bytes:
    """A record as one line of strict JSON. Raises ValueError on NaN or infinity, TypeError on what is not JSON."""
    return (json.dumps(record._asdict(), ensure_ascii=False, allow_nan=False) + "\n").encode()


def decode(line: bytes | str) -> Record:
    """The record of one line. Raises ValueError or TypeError when it is none."""
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return Record(**fields)


def cut_torn_tail(path: Path) -> int:
    """Cut what follows the last newline of a log, if it exists; returns the number of bytes cut."""
    if not path.exists():
        return 0
    with path.open("rb+") as log:
        content = log.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            log.truncate(end)
            os.fsync(log.fileno())
    return len(content) - end


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: after a crash it is the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the creation or renaming of files in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def other_run(directory: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The sentence that refuses a directory of another run, with up to four of the settings that differ."""
    old, new = flatten(stored), flatten(wanted)
    names = [name for name in sorted(old.keys() | new.keys()) if name.startswith(DECIDING)]
    differing = [name for name in names if old.get(name) != new.get(name)]
    shown = ", ".join(
        f"{name.removeprefix('config.')}: {short(old.get(name))} there, {short(new.get(name))} now"
        for name in differing[:4]
    )
    return (
        f"{directory} holds another run (fingerprint {str(stored.get('fingerprint'))[:8]}, this one is "
        f"{str(wanted['fingerprint'])[:8]}{'; ' + shown if shown else ''}); set POWERSAMPLE_RUN_DIR or --run-dir to "
        "another directory, restore the settings to go on with it, or start over in a new directory with --fresh."
    )


def short(value: Any) -> str:
    """A setting's value in a sentence; of digests and the like the beginning."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:12]}…"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in flatten(inner, f"{prefix}.{key}".lstrip(".")).items()}
