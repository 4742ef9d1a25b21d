"""The files of a run directory: their names, the content of run.json, and whether a process is writing the run.

`run.json` says what the run is (its `fingerprint` decides who may go on with it), `lock` names the process that writes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from evals.types import UserError
from orchestrator.rundir.files import writing
from orchestrator.settings.config import DEMO_RUNS

RUN, RECORDS, TELEMETRY, LOCK = "run.json", "records.jsonl", "telemetry.jsonl", "lock"


def is_run(directory: Path) -> bool:
    return (directory / RUN).is_file() and (directory / RECORDS).is_file()


def runs_in(directory: Path) -> list[Path]:
    """The run directories inside one that is no run itself: those of a demo in their order, then others by name."""
    order = {name: i for i, name in enumerate(DEMO_RUNS)}
    runs = [] if (directory / RUN).exists() else [path.parent for path in directory.glob(f"*/{RUN}")]
    return sorted(runs, key=lambda run: (order.get(run.name, len(order)), run.name))


def read_run(directory: Path) -> dict[str, JsonValue] | None:
    """The content of run.json; None if there is no such file. Raises UserError if it is damaged."""
    try:
        content = json.loads((directory / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        reason = f"{directory / RUN} is not valid JSON ({error}); restore it or choose another directory."
        raise UserError(reason) from error
    if not isinstance(content, dict):
        raise UserError(f"{directory / RUN} is not a JSON object; restore it or choose another directory.")
    return content


def check_lock(directory: Path) -> None:
    """Raises UserError if a process holds the run's lock; takes no lock and writes nothing."""
    try:
        lock = os.open(directory / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise locked(lock, directory) from error
    finally:
        os.close(lock)


def locked(lock: int, directory: Path) -> UserError:
    """The error that refuses a run which another process is writing."""
    writer = os.read(lock, 200).decode(errors="replace").strip() or "another process"
    ways = "wait for it, stop it, or choose another directory"
    return UserError(f"The run in {directory} is being written by {writer}; {ways}.", ("run_dir",))


def flatten(value: Any, prefix: str = "") -> dict[str, JsonValue]:
    """Nested dictionaries as a flat one with dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in flatten(inner, f"{prefix}.{key}".lstrip(".")).items()}


def check_writable(directory: Path) -> None:
    """Raises UserError unless `directory`, or the nearest parent that exists, is a directory that can be written."""
    with directory_errors(directory):
        try_writing(directory)


def try_writing(directory: Path) -> None:
    """Raises OSError as `check_writable` raises UserError; writes nothing."""
    nearest = next(place for place in (directory.absolute(), *directory.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise OSError(errno.ENOTDIR, f"{nearest} is not a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, f"no permission to write in {nearest}")


def directory_errors(directory: Path) -> AbstractContextManager[None]:
    """Turns an OSError inside the `with` block into a UserError: the run directory cannot be written."""
    return writing(f"The run directory {directory}", "choose another", ("run_dir",))
