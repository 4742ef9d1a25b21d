"""The start script with a stand-in for the interpreter: which ends are final, what is restarted, how signals pass."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "speedrun_powersample.sh"
SCRIPTS = [SCRIPT, ROOT / "launch/setup.sh", ROOT / "launch/constraints.sh", ROOT / ".ci/run"]

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


def start(folder: Path, *plan: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    env = prepare(folder, *plan)
    return subprocess.run(
        ["bash", SCRIPT, *flags], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def starts(folder: Path) -> list[str]:
    return (folder / "starts").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


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


def test_three_fruitless_starts_end_it(tmp_path: Path) -> None:
    done = start(tmp_path, "1 1", "7", "7", "7", "0")
    assert done.returncode == 7
    assert len(starts(tmp_path)) == 4
    assert "given up" in done.stderr


def test_a_start_with_new_records_forgives_the_fruitless_ones(tmp_path: Path) -> None:
    assert start(tmp_path, "1", "1", "1 1", "1", "1", "0").returncode == 0
    assert len(starts(tmp_path)) == 6


def test_a_fresh_run_is_not_restarted_as_another_one(tmp_path: Path) -> None:
    done = start(tmp_path, "1 1", "0", flags=("--fresh",))
    assert done.returncode == 1
    assert "--run-dir" in done.stderr
    assert len(starts(tmp_path)) == 1


def test_records_are_found_where_the_flag_puts_them(tmp_path: Path) -> None:
    env = prepare(tmp_path, "1 1", "1 1", "1 1", "1 1", "0")
    env["POWERSAMPLE_RUN_DIR"] = str(tmp_path / "elsewhere")
    for flags in (["--run-dir", "run"], ["--run-dir=run"]):
        (tmp_path / "starts").unlink(missing_ok=True)
        done = subprocess.run(["bash", SCRIPT, *flags], cwd=tmp_path, env=env, capture_output=True, check=False)
        assert done.returncode == 0


def in_terminal(folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
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
    env = prepare(tmp_path, "0") | {"POWERSAMPLE_RESTART_SECONDS": "abc"}
    done = subprocess.run(["bash", SCRIPT], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
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
    done = subprocess.run(["bash", SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"The interpreter {tmp_path / 'python'} cannot import powersample ({why}); ")
    assert done.stderr.count("\n") == 1


def test_the_interpreter_of_these_tests_fits(tmp_path: Path) -> None:
    env = prepare(tmp_path) | {"POWERSAMPLE_PYTHON": sys.executable}
    done = subprocess.run(["bash", SCRIPT, "--help"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the set-up script and nothing to install."""
    root = tmp_path / "checkout"
    (root / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch/setup.sh", root / "launch")
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "constraints.txt").write_text("")
    return root


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


def set_up(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    tools = checkout.parent / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "python3").write_text(FAKE_PYTHON)
    (tools / "python3").chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("POWERSAMPLE_")}
    env = clean | {"PATH": f"{tools}:{os.environ['PATH']}", "LOG": str(checkout.parent / "pip"), **variables}
    command = ["bash", checkout / "launch/setup.sh", *arguments]
    return subprocess.run(command, cwd=checkout.parent, env=env, capture_output=True, text=True, check=False)


def installs(checkout: Path) -> list[str]:
    return (checkout.parent / "pip").read_text().splitlines()


def test_set_up_happens_once_and_again_when_its_inputs_change(checkout: Path) -> None:
    assert set_up(checkout).returncode == 0
    again = set_up(checkout)
    assert (again.returncode, again.stderr) == (0, "")
    assert len(installs(checkout)) == 1
    (checkout / "constraints.txt").write_text("torch==2.13.0\n")
    assert set_up(checkout).returncode == 0
    assert len(installs(checkout)) == 2
    assert sorted(path.name for path in checkout.iterdir()) == [".venv", "constraints.txt", "launch", "pyproject.toml"]


def test_the_development_environment_serves_for_runs_but_not_the_other_way_round(checkout: Path) -> None:
    assert set_up(checkout).returncode == 0
    assert set_up(checkout, "dev").returncode == 0
    assert set_up(checkout).returncode == 0
    assert [line.rpartition(" -e ")[2] for line in installs(checkout)] == [".", ".[dev]"]


def test_a_failed_set_up_is_one_sentence_and_is_made_again_from_nothing(checkout: Path) -> None:
    failed = set_up(checkout, PIP_CODE="1")
    assert failed.returncode == 2
    assert "could not be installed" in failed.stderr
    (checkout / ".venv/left-over").touch()
    assert set_up(checkout).returncode == 0
    assert not (checkout / ".venv/left-over").exists()


def test_an_interpreter_of_ones_own_needs_no_set_up(checkout: Path) -> None:
    assert set_up(checkout, POWERSAMPLE_PYTHON="/usr/bin/python3").returncode == 0
    assert not (checkout / ".venv").exists()


def test_a_python_that_is_too_old_is_named(checkout: Path) -> None:
    tools = checkout.parent / "old"
    tools.mkdir()
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (tools / name).write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n')
        (tools / name).chmod(0o755)
    env = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(checkout)}
    script = checkout / "launch/setup.sh"
    done = subprocess.run(["bash", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Python 3.9.2" in done.stderr
    assert not (checkout / ".venv").exists()
