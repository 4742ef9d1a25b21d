"""launch/utilisation.py, which compares a batched run with one that is not, as a user calls it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.logs import read_records
from support.places import ROOT

SCRIPT = ROOT / "launch/test_batched_gpu_utilization.sh"


def typed(place: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("POWERSAMPLE_", "RAY_", "PYTHONPATH"))}
    given = {"PYTHON": sys.executable, "NUM_GPUS": "0", **variables}
    return subprocess.run(
        ["bash", SCRIPT, *options],
        cwd=place,
        env=clean | {f"POWERSAMPLE_{name}": value for name, value in given.items()},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_batched_and_unbatched_side_by_side(tmp_path: Path) -> None:
    done = typed(tmp_path, "--limit", "12", "--task.max-new-tokens", "80", INLINE="1", BATCH_SIZE="6", RUN_DIR="here")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("There is no GPU here")
    rows = {line[:30].strip(): line[30:].split() for line in lines[2:-1]}
    assert rows["slots"] == ["1", "x", "6", "1", "x", "1"]
    batched, single = map(float, rows["problems in flight, mean"])
    assert 2 < batched <= 6.5
    assert 0.9 < single <= 1.1
    assert rows["problems failed"] == ["0", "0"]
    assert all(float(figure) > 0.05 for figure in rows["inline: memory (RSS)"] if figure != "GiB")
    seconds = list(map(float, rows["seconds of sampling"]))
    ratio = re.fullmatch(r"one at a time / batched: (\d+\.\d)x", lines[-1])
    assert ratio
    assert float(ratio[1]) == pytest.approx(seconds[1] / seconds[0], abs=0.2 + 0.1 * float(ratio[1]))
    texts = [
        {(record.problem_id, record.text) for record in read_records(tmp_path / f"here/batched={flag}/records.jsonl")}
        for flag in (0, 1)
    ]
    assert len(texts[0]) == 12
    assert texts[0] == texts[1]


def test_a_place_with_another_test_is_left_alone_and_what_run_refuses_ends_it(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = typed(tmp_path, RUN_DIR="here")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "There is here already, and a time is measured from the start; set POWERSAMPLE_RUN_DIR to a new directory.\n"
    )
    done = typed(tmp_path, "--bath-size", "3", RUN_DIR="there")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean --batch-size?" in done.stderr
    assert "begin it again" not in done.stderr
    assert not (tmp_path / "there").exists()


def test_a_signal_ends_it_with_the_truth_about_going_on(tmp_path: Path) -> None:
    """A Python whose run was stopped by SIGINT stands for one."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *"orchestrator run"*) exit 130 ;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = typed(tmp_path, PYTHON=str(python), RUN_DIR="there")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.endswith("measures from the start; begin it again with a new POWERSAMPLE_RUN_DIR.\n")
