"""launch/setup.sh: an environment is made once, and what is in the way is said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.places import ROOT

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


def set_up(
    checkout: Path, *arguments: str, path: str = "/usr/bin:/bin", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the script as somebody who is not root."""
    command = ["bash", str(checkout / "launch/setup.sh"), *arguments]
    env, user = {"PATH": path, "HOME": str(checkout), **variables}, NOBODY if os.geteuid() == 0 else None
    return subprocess.run(command, cwd="/", env=env, user=user, capture_output=True, text=True, check=False, timeout=60)


def tool(checkout: Path, program: str, *names: str) -> str:
    """A PATH on which `program` has these names."""
    tools = checkout / "bin"
    tools.mkdir(mode=0o755, exist_ok=True)
    for name in names:
        (tools / name).write_text(program)
        (tools / name).chmod(0o755)
    checkout.chmod(0o777)
    return f"{tools}:/usr/bin:/bin"


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
    program = f'#!/bin/sh\ncase "$*" in "-m venv"*) printf "%s\\n" "{output}"; exit 1 ;; esac\n'
    done = set_up(checkout, path=tool(checkout, program, "python3"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"cannot make an environment in {checkout}/.venv: {reason}")


FAKE_PYTHON = r"""#!/usr/bin/env bash
# An interpreter that fits, makes environments, and installs nothing: it writes down what it was asked.
case "$*" in
  "-c "*) exit 0 ;;
  --version) echo "Python 3.12.0" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip --version") ;;
  "-m pip install "*) echo "$*" >>"$LOG"; exit "${PIP_CODE:-0}" ;;
esac
"""


def made(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = tool(checkout, FAKE_PYTHON, "python3")
    (checkout / "bin").chmod(0o777)
    return set_up(checkout, *arguments, path=path, LOG=str(checkout / "bin/pip"), **variables)


def installs(checkout: Path) -> list[str]:
    return (checkout / "bin/pip").read_text().splitlines()


def test_set_up_happens_once_and_again_when_its_inputs_change(checkout: Path) -> None:
    assert made(checkout).returncode == 0
    again = made(checkout)
    assert (again.returncode, again.stderr) == (0, "")
    assert len(installs(checkout)) == 1
    (checkout / "constraints.txt").write_text("torch==2.13.0\n")
    assert made(checkout).returncode == 0
    assert len(installs(checkout)) == 2
    assert sorted(path.name for path in checkout.iterdir()) == [
        ".venv",
        "bin",
        "constraints.txt",
        "launch",
        "pyproject.toml",
    ]


def test_the_development_environment_serves_for_runs_but_not_the_other_way_round(checkout: Path) -> None:
    assert made(checkout).returncode == 0
    assert made(checkout, "dev").returncode == 0
    assert made(checkout).returncode == 0
    assert [line.rpartition(" -e ")[2] for line in installs(checkout)] == [".", ".[dev]"]


def test_a_failed_set_up_is_one_sentence_and_is_made_again_from_nothing(checkout: Path) -> None:
    failed = made(checkout, PIP_CODE="1")
    assert failed.returncode == 2
    assert "could not be installed" in failed.stderr
    (checkout / ".venv/left-over").touch()
    assert made(checkout).returncode == 0
    assert not (checkout / ".venv/left-over").exists()


def test_an_interpreter_of_ones_own_needs_no_set_up(checkout: Path) -> None:
    assert set_up(checkout, POWERSAMPLE_PYTHON="/usr/bin/python3").returncode == 0
    assert not (checkout / ".venv").exists()


def test_the_interpreters_that_are_looked_for_are_those_of_the_package() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    script = (ROOT / "launch/setup.sh").read_text()
    [(first, after)] = re.findall(r"\(3, (\d+)\) <= sys.version_info < \(3, (\d+)\)", script)
    assert wanted == f">=3.{first},<3.{after}"
    [names] = re.findall(r"for name in (python3 [^;]+);", script)
    assert {*names.split()} == {"python3"} | {f"python3.{minor}" for minor in range(int(first), int(after))}


def test_a_python_that_is_too_old_is_named(checkout: Path) -> None:
    program = '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n'
    path = tool(checkout, program, "python3", "python3.11", "python3.12", "python3.13", "python3.14")
    done = set_up(checkout, path=path)
    assert done.returncode == 2
    assert "Python 3.11 to 3.14 is needed and python3 is Python 3.9.2" in done.stderr
    assert not (checkout / ".venv").exists()
