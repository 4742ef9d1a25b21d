"""Describes, for run.json, the software and hardware that make a run: versions, git commit, GPUs."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import JsonValue

from orchestrator.installation import ROOT
from orchestrator.machine.gpus import driver_version, visible_gpus

PACKAGES = [
    "powersample",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "ray",
    "datasets",
    "numpy",
    "pydantic",
    "math-verify",
    "latex2sympy2_extended",
    "antlr4-python3-runtime",
]


@dataclass(frozen=True)
class Environment:
    """Where and with what a run is made, as run.json says it."""

    versions: dict[str, str]
    """Of PACKAGES."""
    git_commit: str | None
    git_dirty: bool | None
    """Of this checkout; None if it is no git checkout or there is no git."""
    python: str
    command: str
    hardware: dict[str, JsonValue]


def describe() -> Environment:
    """The environment of this process."""
    commit, dirty = git_state(ROOT)
    hardware: dict[str, JsonValue] = {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [gpu._asdict() for gpu in visible_gpus()],
        "driver": driver_version(),
    }
    versions = {name: installed(name) for name in PACKAGES}
    return Environment(versions, commit, dirty, platform.python_version(), shlex.join(sys.argv), hardware)


def installed(name: str) -> str:
    """Version of a package; `missing` if it is not installed as one."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def git_state(checkout: Path) -> tuple[str | None, bool | None]:
    """The commit of `checkout` and whether it has changes; None where that is not known."""
    commit = git(checkout, "rev-parse", "HEAD") if (checkout / ".git").exists() else None
    status = None if commit is None else git(checkout, "status", "--porcelain", "--untracked-files=no")
    return commit, None if status is None else bool(status)


def git(checkout: Path, *arguments: str) -> str | None:
    """Output of a git command; None if it fails."""
    try:
        result = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
