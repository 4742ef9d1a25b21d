"""What launch/setup.sh says where it cannot make an environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOBODY = 65534


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A checkout that everybody may read, in a place that everybody can reach."""
    root = Path(tempfile.mkdtemp())
    try:
        (root / "launch").mkdir()
        shutil.copy(ROOT / "launch/setup.sh", root / "launch")
        (root / "pyproject.toml").write_text("[project]\n")
        (root / "constraints.txt").write_text("")
        root.chmod(0o755)
        yield root
    finally:
        root.chmod(0o755)
        shutil.rmtree(root)


def set_up(checkout: Path, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    """Run the script as somebody who is not root."""
    command = ["bash", str(checkout / "launch/setup.sh")]
    user = NOBODY if os.geteuid() == 0 else None
    return subprocess.run(
        command, cwd="/", env={"PATH": path}, user=user, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("place", [".", ".venv"])
def test_a_directory_that_cannot_be_written_is_named(place: str, checkout: Path) -> None:
    (checkout / place).mkdir(exist_ok=True)
    (checkout / place).chmod(0o555)
    done = set_up(checkout)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"setup: {(checkout / place).resolve()} cannot be written by ")
    assert "POWERSAMPLE_PYTHON" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "apt" not in done.stderr


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("needs ensurepip\nFailing command: x", "it has no ensurepip (on Debian and Ubuntu: apt install python3-venv)"),
        ("Traceback\nOSError: No space left on device", "OSError: No space left on device"),
    ],
)
def test_a_python_that_makes_no_environment_says_why(output: str, reason: str, checkout: Path) -> None:
    tools = checkout / "bin"
    tools.mkdir(mode=0o755)
    python = tools / "python3"
    python.write_text(f'#!/bin/sh\ncase "$*" in "-m venv"*) printf "%s\\n" "{output}"; exit 1 ;; esac\n')
    python.chmod(0o755)
    checkout.chmod(0o777)
    done = set_up(checkout, f"{tools}:/usr/bin:/bin")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"cannot make an environment in {checkout}/.venv: {reason}")
