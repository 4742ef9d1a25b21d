"""The start script with a stand-in for the interpreter: which ends are final, what is restarted, how signals pass."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from support.places import ROOT

SCRIPT = ROOT / "speedrun_powersample.sh"

STAND_IN = r"""#!/usr/bin/env bash
# Each start takes the next line of the plan: an exit code and a number of records to add first, or "wait".
here=$(dirname "$0")
[[ $2 == -c ]] && echo fit && exit
echo "$*" >>"$here/starts"
env | grep -E '^(RAY_|PYTHONPATH)' >"$here/environment"
read -r what records < <(sed -n "$(wc -l <"$here/starts")p" "$here/plan")
if [[ $what == wait ]]; then
  trap 'echo TERM >>"$here/signals"; exit 143' TERM
  echo ready >"$here/ready"
  while :; do sleep 0.02; done
fi
mkdir -p "$here/run"
for ((i = 0; i < ${records:-0}; i++)); do echo '{}' >>"$here/run/records.jsonl"; done
[[ $what == kill ]] && kill -9 $$
exit "$what"
"""


def prepare(folder: Path, *plan: str) -> dict[str, str]:
    """A stand-in interpreter in `folder` with its plan; returns the environment to start the script with."""
    python = folder / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    (folder / "plan").write_text("".join(f"{line}\n" for line in plan))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("POWERSAMPLE_", "RAY_", "PYTHONPATH"))}
    ours = {"PYTHON": python, "RUN_DIR": folder / "run", "RESTART_SECONDS": "0"}
    return clean | {f"POWERSAMPLE_{name}": str(value) for name, value in ours.items()}


def start(folder: Path, *plan: str, flags: Sequence[str] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    return script(folder, prepare(folder, *plan) | variables, *flags)


def script(folder: Path, env: Mapping[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", SCRIPT, *flags]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


def starts(folder: Path) -> list[str]:
    return (folder / "starts").read_text().splitlines()


@pytest.mark.parametrize("code", [0, 2, 3, 130, 143])
def test_final_exit_codes_are_passed_on(code: int, tmp_path: Path) -> None:
    assert start(tmp_path, str(code)).returncode == code
    assert len(starts(tmp_path)) == 1


def test_arguments_and_environment_reach_the_driver(tmp_path: Path) -> None:
    assert start(tmp_path, "0", flags=("--limit", "5", "--model", "a b")).returncode == 0
    assert starts(tmp_path) == ["-P -m orchestrator run --limit 5 --model a b"]
    assert f"PYTHONPATH={ROOT}" in (tmp_path / "environment").read_text().splitlines()


def test_a_driver_that_dies_is_restarted_while_it_adds_records(tmp_path: Path) -> None:
    done = start(tmp_path, "kill 2", "1 1", "kill 1", "1 3", "0 1")
    assert done.returncode == 0
    assert len(starts(tmp_path)) == 5
    assert [line.partition(";")[0] for line in done.stderr.splitlines()] == [
        f"The driver ended with code {code}" for code in (137, 1, 137, 1)
    ]


@pytest.mark.parametrize(
    ("plan", "code", "number"),
    [(["1 1", "7", "7", "7", "0"], 7, 4), (["1", "1", "1 1", "1", "1", "0"], 0, 6)],
    ids=["given up", "new records forgive"],
)
def test_three_fruitless_starts_in_a_row_end_it(plan: list[str], code: int, number: int, tmp_path: Path) -> None:
    done = start(tmp_path, *plan)
    assert (done.returncode, len(starts(tmp_path))) == (code, number)
    assert ("given up" in done.stderr) == (code != 0)


def test_a_fresh_run_is_not_restarted_as_another_one(tmp_path: Path) -> None:
    done = start(tmp_path, "1 1", "0", flags=("--fresh",))
    assert done.returncode == 1
    assert "--run-dir" in done.stderr
    assert len(starts(tmp_path)) == 1


@pytest.mark.parametrize("flags", [["--run-dir", "run"], ["--run-dir=run"]])
def test_records_are_found_where_the_flag_puts_them(flags: list[str], tmp_path: Path) -> None:
    elsewhere = {"POWERSAMPLE_RUN_DIR": str(tmp_path / "elsewhere")}
    assert start(tmp_path, *["1 1"] * 4, "0", flags=flags, **elsewhere).returncode == 0


def in_terminal(folder: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """The script as a terminal starts it: bash cannot trap a signal that was ignored when it began, as in background
    jobs."""
    return subprocess.Popen(
        ["bash", SCRIPT],
        cwd=folder,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_both_signals_reach_the_driver_as_sigterm(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    env = prepare(tmp_path, "wait", "0")
    os.mkfifo(tmp_path / "ready")
    with in_terminal(tmp_path, env) as script:
        (tmp_path / "ready").read_text()  # returns once the driver has its trap
        script.send_signal(sent)
        _, stderr = script.communicate(timeout=30)
    assert script.returncode == code, stderr
    assert (tmp_path / "signals").read_text() == "TERM\n"
    assert len(starts(tmp_path)) == 1


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("where", ["before", "driver"])
def test_a_stop_before_the_driver_can_tell_is_told_by_the_script(
    where: str, sent: signal.Signals, code: int, tmp_path: Path
) -> None:
    env = prepare(tmp_path, "0")
    os.mkfifo(tmp_path / "ready")
    fit = "exec sleep 0.3" if where == "before" else "echo fit; exit"
    wait = f'echo >"{tmp_path}/ready"\n'
    program = f'#!/bin/sh\nif [ "$2" = -c ]; then {wait if where == "before" else ""}{fit}; fi\n{wait}exec sleep 60\n'
    (tmp_path / "python").write_text(program)
    with in_terminal(tmp_path, env) as script:
        (tmp_path / "ready").read_text()
        script.send_signal(sent)
        _, stderr = script.communicate(timeout=30)
    assert (script.returncode, stderr) == (code, f"Stopped by {sent.name}; the same command goes on.\n")


def test_a_pause_that_is_no_number_is_refused_at_once(tmp_path: Path) -> None:
    done = start(tmp_path, "0", POWERSAMPLE_RESTART_SECONDS="abc")
    assert done.returncode == 2
    assert done.stderr.startswith("POWERSAMPLE_RESTART_SECONDS=abc is no number of seconds; ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "starts").exists()


BARE = """#!/bin/sh
echo Traceback >&2
echo "ModuleNotFoundError: No module named 'pydantic'" >&2
exit 1
"""


@pytest.mark.parametrize(
    ("program", "why"),
    [(None, "No such file or directory"), ("#!/bin/sh\n", "it says nothing"), (BARE, "No module named 'pydantic'")],
)
def test_an_interpreter_without_the_packages_is_refused_at_once(program: str | None, why: str, tmp_path: Path) -> None:
    env = prepare(tmp_path, "0")
    if program is None:
        (tmp_path / "python").unlink()
    else:
        (tmp_path / "python").write_text(program)
    done = script(tmp_path, env)
    assert done.returncode == 2
    assert done.stderr.startswith(f"The interpreter {tmp_path / 'python'} cannot import powersample ({why}); ")
    assert done.stderr.count("\n") == 1


def test_the_interpreter_of_these_tests_fits(tmp_path: Path) -> None:
    done = start(tmp_path, flags=["--help"], POWERSAMPLE_PYTHON=sys.executable)
    assert (done.returncode, done.stderr) == (0, "")
