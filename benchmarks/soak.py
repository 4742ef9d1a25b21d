"""Checks that a driver that starts run after run leaks no memory, files, processes or disk space.

    python benchmarks/soak.py [--minutes 30]

One process calls `powersample run` again and again: the embedded model, 24 problems, two actors on a Ray of their own,
a new run directory that is removed afterwards. After each run it reads its own memory and open files, counts what is
left of Ray's processes, and measures what lies in a temporary directory that only this loop uses. The first WARM_UP
runs fill caches. After them the bounds are: MEMORY_MIB of growth from the first half's median to the second half's,
FILES more open for every run (of these Ray 2.60 leaves two sockets for each session that had an actor, as a bare
loop of init, actor and shutdown does), no process after GONE_SECONDS, DISK_MIB per run (Ray keeps its logs). A
driver has one session, and a few where Ray has to be started again.
The last line is one JSON object; the exit code is 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

WARM_UP = 3
MEMORY_MIB, FILES, DISK_MIB, GONE_SECONDS = 32.0, 2.5, 2.0, 30.0
RUN = "--model demo --data demo --limit 24 --sampler.kind temperature --num-gpus 0 --num-workers 2 --no-dashboard"


class Reading(NamedTuple):
    """What this process and its loop hold after one run."""

    memory_mib: float
    """Resident, of this process."""
    files: int
    """Open descriptors of this process."""
    processes: int
    """Others of this loop that still live."""
    disk_mib: float
    """In its temporary directory."""


def read(folder: Path) -> Reading:
    """Take a reading; processes get GONE_SECONDS to end."""
    until = time.monotonic() + GONE_SECONDS
    while (left := others(folder)) and time.monotonic() < until:
        time.sleep(0.2)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    disk = sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))
    return Reading(resident / 2**20, len(list(Path("/proc/self/fd").iterdir())), left, disk / 2**20)


def others(folder: Path) -> int:
    """Number of other processes of this loop that live, known by the temporary directory in their environment."""
    mark, found = f"RAY_TMPDIR={folder}".encode(), 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                found += mark in (entry / "environ").read_bytes().split(b"\0")
    return found


def broken(readings: Sequence[Reading]) -> dict[str, float]:
    """Name and growth of what grew beyond its bound, over at least WARM_UP + 2 readings."""
    first, *rest = readings[WARM_UP - 1 :]
    half = len(rest) // 2
    grown = {
        "memory_mib": median(r.memory_mib for r in rest[half:]) - median(r.memory_mib for r in rest[:half]),
        "files_per_run": (rest[-1].files - first.files) / len(rest),
        "processes": max(r.processes for r in rest),
        "disk_mib_per_run": (rest[-1].disk_mib - first.disk_mib) / len(rest),
    }
    bounds = {"memory_mib": MEMORY_MIB, "files_per_run": FILES, "processes": 0, "disk_mib_per_run": DISK_MIB}
    return {name: value for name, value in grown.items() if value > bounds[name]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (%(default)s)")
    minutes = parser.parse_args().minutes
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    os.environ |= {"RAY_TMPDIR": str(folder), "TMPDIR": str(folder)}  # before Ray is imported
    from orchestrator.cli import main as powersample

    began, readings = time.monotonic(), list[Reading]()
    try:
        while time.monotonic() - began < 60 * minutes or len(readings) < WARM_UP + 2:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
                code = powersample(["run", *RUN.split(), "--run-dir", str(folder / "run")])
            if code:
                raise SystemExit(f"run {len(readings) + 1} ended with code {code}: {said.getvalue()}")
            shutil.rmtree(folder / "run")
            readings.append(read(folder))
            print(f"run {len(readings)}, {time.monotonic() - began:.0f} s: {readings[-1]}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = broken(readings)
    last = {"first": readings[WARM_UP - 1]._asdict(), "last": readings[-1]._asdict(), "broken": found}
    print(json.dumps({"runs": len(readings), "minutes": (time.monotonic() - began) / 60, **last}))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
