"""Decides which process may write a run directory: one at a time, of one fingerprint, no run inside another."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from evals.types import UserError
from orchestrator.rundir.directory import LOCK, RECORDS, RUN, TELEMETRY, flatten, is_run, locked, read_run
from orchestrator.rundir.extents import grown
from orchestrator.rundir.files import write_atomically
from orchestrator.rundir.reading.records import SCORES

DECIDING = (
    *map("config.{}".format, ("model", "data", "seed", "sampler", "task", "engine.dtype")),
    *map("provenance.{}".format, ("model.sha256", "data.sha256", "texts_sha256", "adapter")),
)
"""Fields of run.json that a refusal names if they differ between two runs; the fingerprint alone decides."""
SIZE = "config.limit", "config.num_samples"
"""Fields that decide as well where an older version has made the run, which then cannot grow."""


def check_location(directory: Path) -> None:
    """Raises UserError if runs would lie inside one another, or among other files: whose a file is would be unclear."""
    place = Path(os.path.realpath(directory))  # no error for a loop of links: opening it raises one
    outer = next((parent for parent in place.parents if is_run(parent)), None)
    if outer is not None:
        raise UserError(
            f"The run directory {directory} lies inside the run {outer}; choose one beside it.", ("run_dir",)
        )
    inner = next((manifest.parent for manifest in sorted(place.glob(f"*/{RUN}")) if is_run(manifest.parent)), None)
    if inner is not None:
        raise UserError(
            f"The run directory {directory} holds the directory of another run, {inner.name}; choose a new one, such "
            f"as {directory / 'NAME'}.",
            ("run_dir",),
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
            f"is no run's; move them away or choose another directory, such as {directory / 'NAME'}.",
            ("run_dir",),
        )


def ensure_manifest(directory: Path, wanted: Mapping[str, JsonValue]) -> None:
    """Write run.json if the directory is new or its run has grown. Raises UserError if it is another run's.

    A run without an answer is replaced by one of another fingerprint, and its telemetry is deleted; scores without an
    answer, whose records somebody has removed, are deleted in any case: they would be taken for those of new answers.
    """
    stored, content, answers = same_run(directory, wanted), wanted, num_lines(directory / RECORDS)
    if not answers:
        (directory / SCORES).unlink(missing_ok=True)
    if stored is None:
        (directory / TELEMETRY).unlink(missing_ok=True)
    else:
        content = grown(stored, wanted, answers)
    if content != stored:
        write_atomically(directory / RUN, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def same_run(directory: Path, wanted: Mapping[str, JsonValue]) -> dict[str, JsonValue] | None:
    """The content of run.json if it has the wanted fingerprint; None if it may be replaced. Raises UserError for
    another run."""
    stored = read_run(directory)
    if stored is None or stored.get("fingerprint") == wanted["fingerprint"]:
        return stored
    if num_lines(directory / RECORDS):
        raise other_run(directory, stored, wanted)
    return None


def num_lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def take_lock(lock: int, directory: Path) -> None:
    """Lock the open lock file and write this process into it. Raises UserError naming the process that holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise locked(lock, directory) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def other_run(directory: Path, stored: Mapping[str, JsonValue], wanted: Mapping[str, JsonValue]) -> UserError:
    """The error that refuses a directory of another run, with up to four of the settings that differ."""
    old, new = flatten(stored), flatten(wanted)
    deciding = DECIDING if "extents" in stored else (*DECIDING, *SIZE)
    differing = [
        name for name in old.keys() | new.keys() if name.startswith(deciding) and old.get(name) != new.get(name)
    ]
    differing.sort(key=lambda name: (not name.endswith("sampler.kind"), name))  # others differ because of the kind
    shown = ", ".join(
        f"{name.removeprefix('config.')}: {shortened(old.get(name))} there, {shortened(new.get(name))} now"
        for name in differing[:4]
    )
    return UserError(
        f"{directory} holds another run (fingerprint {str(stored.get('fingerprint'))[:8]}, this one is "
        f"{str(wanted['fingerprint'])[:8]}{'; ' + shown if shown else ''}); restore the settings to go on with it, "
        "choose another directory, or start over in a new one.",
        ("run_dir", "fresh"),
    )


def shortened(value: JsonValue) -> str:
    """A setting's value for a message; of a long one, such as a digest, the beginning."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
