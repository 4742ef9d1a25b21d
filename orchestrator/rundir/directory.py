"""Whose a run directory is: one writer at a time, one fingerprint, and no run inside another. Knows no record.

`run.json` says what the run is (its `fingerprint` decides who may go on with it), `lock` names the process that writes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.types import UserError
from orchestrator.settings.config import DEMO_RUNS

RUN, RECORDS, TELEMETRY, LOCK = "run.json", "records.jsonl", "telemetry.jsonl", "lock"


def is_run(directory: Path) -> bool:
    return (directory / RUN).is_file() and (directory / RECORDS).is_file()


def runs_in(directory: Path) -> list[Path]:
    """The runs in a directory that is none itself: those of a demo in their order, then others by name."""
    order = {name: i for i, name in enumerate(DEMO_RUNS)}
    found = [] if (directory / RUN).exists() else [path.parent for path in directory.glob(f"*/{RUN}")]
    return sorted(found, key=lambda run: (order.get(run.name, len(order)), run.name))


def read_run(directory: Path) -> dict[str, Any] | None:
    """What run.json says; None where there is none. Raises UserError if it is damaged."""
    try:
        run = json.loads((directory / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{directory / RUN} is not valid JSON ({error}); restore it or choose another directory."
        ) from error
    if not isinstance(run, dict):
        raise UserError(f"{directory / RUN} is not a JSON object; restore it or choose another directory.")
    return run


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


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in flatten(inner, f"{prefix}.{key}".lstrip(".")).items()}
