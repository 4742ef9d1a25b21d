"""The command line, in a process of its own or in this one, in an environment without what is set here for runs and
Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from orchestrator.cli import main
from support.places import ROOT


def clean(**variables: object) -> dict[str, str]:
    """This process's environment without POWERSAMPLE_ and RAY_ variables, with one thread and `variables`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("POWERSAMPLE_", "RAY_"))}
    return kept | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in variables.items()}


def python(
    *arguments: object, timeout: float = 290, umask: int = -1, **variables: object
) -> subprocess.CompletedProcess[str]:
    """Run a Python process with these arguments and variables; returns its exit code and output."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=clean(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        umask=umask,
        check=False,
    )


def powersample(*arguments: object, **variables: Any) -> subprocess.CompletedProcess[str]:
    """What the command line did."""
    return python("-m", "orchestrator", *arguments, **variables)


def in_process(*arguments: object, **variables: object) -> int:
    """The exit code of the command line in this process, where its start is not what a test is about."""
    with patch.dict(os.environ, clean(**variables), clear=True):
        return main([*map(str, arguments)])


DEMO = ROOT / "evals/demo"


def run(*flags: object, **variables: object) -> subprocess.CompletedProcess[str]:
    return powersample("run", *flags, **named(variables))


def named(variables: Mapping[str, object]) -> dict[str, Any]:
    return {f"POWERSAMPLE_{name}": value for name, value in variables.items()}


def answers(directory: Path) -> dict[tuple[int, int], list[int]]:
    """(problem, sample) -> tokens; a key that occurs twice is an error."""
    rows = [json.loads(line) for line in (directory / "records.jsonl").read_text().splitlines()]
    found = {(row["problem_id"], row["sample_index"]): row["token_ids"] for row in rows}
    assert len(found) == len(rows), "a record stands twice"
    return found


def kill_after(records: int, directory: Path, sent: signal.Signals, *flags: object, **variables: object) -> int:
    """Start a run, signal it once its log has `records` lines, and return its exit code."""
    command = [sys.executable, "-m", "orchestrator", "run", *map(str, flags), "--run-dir", str(directory)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, env=clean(**named(variables)), **quiet)
    log = directory / "records.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") >= records):
        assert process.poll() is None, "the run ended before it was to be stopped"
        time.sleep(0.02)
    process.send_signal(sent)
    return process.wait(60)
