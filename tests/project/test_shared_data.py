"""A run without the shared data ends with the claims that it did not check; a run that has them is silent."""

from __future__ import annotations

import json
from pathlib import Path

from support.command import python
from support.places import ROOT
from support.shared_data import GSM8K_TEST

BAR = "CLAIMS THAT THIS RUN DID NOT CHECK"
GRADERS = ROOT / "tests/evals/grading/test_grade.py"


def pytest_prints(shared: Path) -> list[str]:
    """Of a test that needs GSM8K's 1,319 problems at `shared`, and of one that needs nothing."""
    tests = "test_reference_solutions_are_right_by_all_graders[test-1319]", "test_shoot_out_totals"
    done = python("-m", "pytest", "-q", *(f"{GRADERS}::{test}" for test in tests), TESTS_SHARED=shared)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_without_the_data_a_run_ends_with_what_it_did_not_check(tmp_path: Path) -> None:
    *above, bar, claim, places, count = pytest_prints(tmp_path)
    assert bar.strip("! ") == BAR
    assert claim == "- GSM8K's own answers: 1,319 of 1,319 under all three scores"
    assert places == f"  needs ../shared/{GSM8K_TEST}"
    assert "1 passed, 1 skipped" in count
    assert not [line for line in above if BAR in line]


def test_with_the_data_it_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / GSM8K_TEST
    file.parent.mkdir(parents=True)
    file.write_text((json.dumps({"question": "How many?", "answer": "#### 18"}) + "\n") * 1319)
    printed = pytest_prints(tmp_path)
    assert "2 passed" in printed[-1]
    assert not [line for line in printed if BAR in line or "not checked" in line]
