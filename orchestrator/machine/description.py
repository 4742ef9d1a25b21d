"""Describes, for run.json, the software and hardware that make a run: versions, git commit, GPUs."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.machine.gpus import driver_version, visible_gpus

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ["powersample", "torch", "transformers", "tokenizers", "safetensors", "ray", "datasets", "numpy", "pydantic"]


def describe(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Where and with what a run was made: versions, git commit, hardware, Python, command line (JSON values)."""
    return {
        "versions": {name: installed(name) for name in PACKAGES},
        **git_state(CHECKOUT),
        "python": platform.python_version(),
        "command": shlex.join(sys.argv if argv is None else argv),
        "hardware": {
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "num_cpus": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": [gpu._asdict() for gpu in visible_gpus()],
            "driver": driver_version(),
        },
    }


def installed(name: str) -> str:
    """Version of a package; `missing` if it is not installed as one."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def git_state(checkout: Path) -> dict[str, Any]:
    """`git_commit` and `git_dirty` of `checkout`; both None if it is no git checkout or there is no git."""
    commit = git(checkout, "rev-parse", "HEAD") if (checkout / ".git").exists() else None
    if commit is None:
        return {"git_commit": None, "git_dirty": None}
    status = git(checkout, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": None if status is None else bool(status)}


def git(checkout: Path, *arguments: str) -> str | None:
    """Output of a git command; None if it fails."""
    try:
        result = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
