"""The command line, in a process of its own or in this one, in an environment without what is set here for runs and
Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
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
