"""Whose a run directory is: one writer at a time, one fingerprint, and no run inside another. Knows no record.

`run.json` says what the run is (its `fingerprint` decides who may go on with it), `lock` names the process that writes.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.types import UserError
from orchestrator.config import DEMO_RUNS
from orchestrator.durable import write_atomically

RUN, RECORDS, TELEMETRY, LOCK = "run.json", "records.jsonl", "telemetry.jsonl", "lock"

DECIDING = (
    *(
        f"config.{name}"
        for name in ("model", "data", "limit", "num_samples", "seed", "sampler", "task", "engine.dtype")
    ),
    "provenance.model.sha256",
    "provenance.data.sha256",
    "provenance.texts_sha256",
)
"""What of run.json may make two runs differ, to be named in a refusal; the fingerprint alone decides."""


def check_place(directory: Path) -> None:
    """Raises UserError if runs would lie inside one another, or among other files: nobody could tell whose is what."""
    place = Path(os.path.realpath(directory))  # of a loop of links it says no more than opening it will
    outer = next((parent for parent in place.parents if is_run(parent)), None)
    if outer is not None:
        raise UserError(
            f"The run directory {directory} lies inside the run {outer}; choose one beside it by POWERSAMPLE_RUN_DIR "
            "or --run-dir."
        )
    inner = next((found.parent for found in sorted(place.glob(f"*/{RUN}")) if is_run(found.parent)), None)
    if inner is not None:
        raise UserError(
            f"The run directory {directory} holds the directory of another run, {inner.name}; choose a new one by "
            f"POWERSAMPLE_RUN_DIR or --run-dir, such as {directory / 'NAME'}."
        )
    if not (directory / RUN).exists():
        check_unused(directory)


def check_unused(directory: Path) -> None:
    """Raises UserError if a directory holds visible files that no start of a run makes before its run.json."""
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    foreign = [name for name in names if name not in (LOCK, TELEMETRY) and not name.startswith(".")]
    if foreign:
        raise UserError(
            f"{directory} has no {RUN} but other files ({', '.join(foreign[:3])}{', …' if foreign[3:] else ''}), so it "
            "is no run's; move them away or choose another directory by POWERSAMPLE_RUN_DIR or --run-dir, such as "
            f"{directory / 'NAME'}."
        )


def is_run(directory: Path) -> bool:
    return (directory / RUN).is_file() and (directory / RECORDS).is_file()


def runs_in(directory: Path) -> list[Path]:
    """The runs in a directory that is none itself: those of a demo in their order, then others by name."""
    order = {name: i for i, name in enumerate(DEMO_RUNS)}
    found = [] if (directory / RUN).exists() else [path.parent for path in directory.glob(f"*/{RUN}")]
    return sorted(found, key=lambda run: (order.get(run.name, len(order)), run.name))


def claim(directory: Path, wanted: Mapping[str, Any]) -> None:
    """Write run.json if the directory is new. Raises UserError if it is another run's.

    A run without one answer is nobody's: another fingerprint takes its directory over, and its telemetry goes.
    """
    if not is_ours(directory, wanted):
        (directory / TELEMETRY).unlink(missing_ok=True)
        write_atomically(directory / RUN, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")


def is_ours(directory: Path, wanted: Mapping[str, Any]) -> bool:
    """Has run.json the wanted fingerprint? If not, the directory may be taken, or UserError: it is another run's."""
    stored, log = read_run(directory), directory / RECORDS
    if stored is not None and stored.get("fingerprint") == wanted["fingerprint"]:
        return True
    if stored is not None and log.exists() and b"\n" in log.read_bytes():
        raise UserError(other_run(directory, stored, wanted))
    return False


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


def other_run(directory: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The sentence that refuses a directory of another run, with up to four of the settings that differ."""
    old, new = flatten(stored), flatten(wanted)
    differing = [
        name for name in old.keys() | new.keys() if name.startswith(DECIDING) and old.get(name) != new.get(name)
    ]
    differing.sort(key=lambda name: (not name.endswith("sampler.kind"), name))  # others differ because of the kind
    shown = ", ".join(
        f"{name.removeprefix('config.')}: {short(old.get(name))} there, {short(new.get(name))} now"
        for name in differing[:4]
    )
    ways = (
        "set POWERSAMPLE_RUN_DIR or --run-dir to another directory, restore the settings to go on with it, or start "
        "over in a new directory with --fresh"
    )
    if new.get("config.task.name") == "open":
        ways = "restore the settings to go on with it, or name another --output_file"
    return (
        f"{directory} holds another run (fingerprint {str(stored.get('fingerprint'))[:8]}, this one is "
        f"{str(wanted['fingerprint'])[:8]}{'; ' + shown if shown else ''}); {ways}."
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
