"""Formulas judged in a process of its own: verdicts, hard limits, crashes, absence, and what a grade then says."""

import sys
import time
from collections.abc import Iterator

import pytest

from evals.grading import grade as grading
from evals.grading.symbolic import Judge
from evals.types import Problem

pytest.importorskip("math_verify", reason="math-verify is not installed")


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    one = Judge(seconds=30)
    yield one
    one.close()


@pytest.fixture(autouse=True)
def one_judge(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "judge", lambda: judge)


def scores(gold: str, text: str) -> tuple[bool, str]:
    found = grading.gsm8k(text, Problem(0, "How much?", f"So.\n#### {gold}"), cot=False)["numeric"]
    return found.correct, found.kind


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("9", r"\boxed{\frac{18}{2}}", (True, "complex")),
        ("9", "The answer is 18/2.", (True, "complex")),
        ("1,450,000", r"\boxed{145 \cdot 10^4}", (True, "complex")),
        ("8", r"\boxed{\frac{18}{2}}", (False, "complex")),
        ("9", r"\boxed{x}", (False, "complex")),
        ("9", "The answer is 18,2.", (False, "several")),
        ("18", r"\boxed{18 \text{ or } 20}", (False, "several")),
        ("9", r"\boxed{\frac{18}{2}\%}", (False, "complex")),  # a percentage is decided before anybody is asked
        ("18", r"\boxed{\frac{}{}{{}}}", (False, "complex")),
    ],
)
def test_complex_answers_to_numbers(gold: str, text: str, expected: tuple[bool, str]) -> None:
    assert scores(gold, text) == expected


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        (r"\frac{14}{3}", r"So $\boxed{\dfrac{14}{3}}$.", True),
        (r"\frac{14}{3}", r"\boxed{\frac{28}{6}}", True),
        (r"\frac{14}{3}", r"\boxed{4.66}", False),
        ("2x", r"\boxed{2x}", True),
        ("2x", r"\boxed{2}", False),
        ("x^2+1", r"\boxed{1+x^2}", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}", True),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", True),
        (r"\text{Evelyn}", r"\boxed{\text{Evan}}", False),
        ("12", "#### 12.0", True),
        ("12", r"\boxed{12\text{ cm}}", True),
        ("12", r"\boxed{12\%}", False),
        (r"50\%", r"\boxed{50\%}", True),
        (r"50\%", r"\boxed{50}", True),
        (r"90^\circ", r"\boxed{90^\circ}", True),
        ("5", "no idea", False),
    ],
)
def test_golds_in_latex(gold: str, text: str, right: bool, judge: Judge) -> None:
    assert grading.formula(text, gold, judge.equal).correct == right
    assert list(grading.FORMATS["math"].scores(text, Problem(0, "?", f"#### {gold}"), False)) == ["numeric"]


HANG = """
import signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGTERM])
print("ready", flush=True)
for line in sys.stdin:
    if "hang" in line:
        time.sleep(600)
    if "die" in line:
        sys.exit(3)
    print("undecided" if "raise" in line else "right", flush=True)
"""


def test_one_that_hangs_dies_or_raises_is_undecided_and_costs_no_other_its_verdict() -> None:
    judge = Judge(seconds=0.5, command=(sys.executable, "-c", HANG))
    assert judge.equal("1", "1") is True
    began = time.monotonic()
    assert judge.equal("1", "hang") is None
    assert time.monotonic() - began < 5
    assert judge.equal("1", "1") is True
    assert judge.equal("1", "die") is None
    assert judge.equal("1", "1") is True
    assert judge.equal("1", "raise") is None
    assert judge.equal("1", "1") is True
    judge.close()


def test_without_the_checker_an_answer_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Judge(command=(sys.executable, "-c", "import no_such_module"))
    assert absent.equal("9", "18/2") is None
    monkeypatch.setattr(grading, "judge", lambda: absent)
    assert scores("9", r"\boxed{\frac{18}{2}}") == (False, "undecided")
    assert scores("9", r"\boxed{9}") == (True, "number")
    assert grading.formula(r"\boxed{x+1}", "1 + x", absent.equal).kind == "undecided"
