"""Formulas judged in a process of its own: verdicts, hard limits, crashes, absence, and what a grade then says."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Timer

import pytest
from packaging.requirements import Requirement

from evals.grading import grade as grading
from evals.grading import symbolic
from evals.types import Answer, Problem, UserError
from support.places import ROOT

pytest.importorskip("math_verify", reason="math-verify is not installed")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic, "SECONDS", 30.0)  # the machine may be busy


def scores(gold: str, text: str) -> tuple[bool, str]:
    found = grading.gsm8k(Answer(text), Problem.from_answer(0, "How much?", f"So.\n#### {gold}"), cot=False)["numeric"]
    return found.correct, found.kind


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("9", r"\boxed{\frac{18}{2}}", (True, "number")),  # two rationals: nobody is asked
        ("9", "The answer is 18/2.", (True, "number")),
        ("1,450,000", r"\boxed{145 \cdot 10^4}", (True, "number")),
        ("8", r"\boxed{\frac{18}{2}}", (False, "number")),
        ("6", r"\boxed{3\sqrt{2} \cdot \sqrt{2}}", (True, "complex")),
        ("3", r"The answer is $\log_2 8$.", (True, "complex")),
        ("3", "The answer is 3x.", (False, "complex")),
        ("9", r"\boxed{x}", (False, "complex")),
        ("9", "The answer is 18,2.", (False, "several")),
        ("18", r"\boxed{18 \text{ or } 20}", (False, "several")),
        ("9", r"\boxed{\frac{18}{2}\%}", (False, "number")),
        ("9", r"\boxed{9\cos{0}\%}", (False, "complex")),  # a percentage is decided before anybody is asked
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
def test_golds_in_latex(gold: str, text: str, right: bool) -> None:
    assert grading.formula(text, gold).correct == right
    assert list(grading.FORMATS["math"].scores(Answer(text), Problem.from_answer(0, "?", f"#### {gold}"), False)) == [
        "numeric"
    ]


def test_the_runtime_is_one_that_the_project_admits() -> None:
    symbolic.check_installed()
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "math-verify>=0.9,<0.10" in wanted, "as the refusal below says"
    [admitted] = [requirement.specifier for requirement in map(Requirement, wanted) if "antlr4" in requirement.name]
    others = ["4.9.3", "4.10", "4.12.0", "4.13.0", "4.13.1", "4.14.0"]
    assert [*admitted.filter([*others, *symbolic.RUNTIMES])] == [*symbolic.RUNTIMES]


@pytest.mark.parametrize(
    ("missing", "runtime", "found"),
    [
        ("math-verify", "4.13.2", "math-verify is not installed"),
        ("latex2sympy2_extended", "4.13.2", "latex2sympy2_extended is not installed"),
        ("antlr4-python3-runtime", "", "antlr4-python3-runtime is not installed"),
        ("", "4.12.0", "version 4.12.0 is installed"),
    ],
)
def test_what_is_missing_is_named(missing: str, runtime: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in(name: str) -> str:
        if name == missing:
            raise PackageNotFoundError(name)
        return runtime if name == "antlr4-python3-runtime" else "0.9.0"

    monkeypatch.setattr(symbolic, "version", stand_in)
    with pytest.raises(UserError) as refused:
        symbolic.check_installed()
    assert str(refused.value) == (
        f"Formulas are compared by math-verify with antlr4-python3-runtime 4.11 or 4.13.2, and {found}; pip install "
        '"math-verify>=0.9,<0.10" "antlr4-python3-runtime==4.13.2".'
    )


def test_percentages_in_formulas_are_decided_by_a_parser_that_reads_them() -> None:
    reads = not version("antlr4-python3-runtime").startswith("4.11")
    right, wrong = symbolic.equal(r"x=5\%", r"x=\frac{1}{20}"), symbolic.equal(r"x=5\%", r"x=\frac{1}{2}")
    assert (right, wrong) == ((True, False) if reads else (None, None))
    assert grading.formula(r"\boxed{x=5\%}", r"x = 5\%").correct, "the same spelling needs no parser"


def stand_in(gold: str, answer: str) -> bool | None:
    """What the process does in place of asking math-verify."""
    if answer == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGTERM])
        time.sleep(600)
    if answer == "die":
        os._exit(3)
    return bool(os.getpid())


def children() -> set[int]:
    """The processes that compare formulas for this one, dead ones that nobody has asked after included."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            if f"\nPPid:\t{os.getpid()}\n" in status.read_text():
                command = (status.parent / "cmdline").read_text()
                found |= {int(status.parent.name)} if "resource_tracker" not in command else set()
    return found


@pytest.fixture
def others() -> Iterator[set[int]]:
    """The children of this process when none of them compares formulas."""
    symbolic.close()
    yield children()
    symbolic.close()


def test_one_that_hangs_or_dies_is_undecided_and_costs_no_other_its_verdict(
    others: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(symbolic, "verdict", stand_in)
    monkeypatch.setattr(symbolic, "SECONDS", 0.5)
    assert symbolic.equal("1", "1") is True
    (first,) = children() - others
    began = time.monotonic()
    assert symbolic.equal("1", "hang") is None
    assert time.monotonic() - began < 5
    assert symbolic.equal("1", "1") is True
    assert symbolic.equal("1", "die") is None
    assert symbolic.equal("1", "1") is True
    (last,) = children() - others
    assert first != last, "no process is left behind"


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_process_is_replaced(busy: bool, others: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert symbolic.equal("9", "18/2") is True
    (process,) = children() - others
    if busy:
        monkeypatch.setattr(symbolic, "verdict", stand_in)
        Timer(0.5, os.kill, (process, signal.SIGKILL)).start()
        assert symbolic.equal("1", "hang") is None
        monkeypatch.undo()
    else:
        os.kill(process, signal.SIGKILL)
    verdicts = [symbolic.equal("9", "18/2") for _ in range(3)]
    assert verdicts[1:] == [True, True]
    assert verdicts[0] in (True, None), "the first may have been asked of the dead one"
    assert process not in children()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", ""])
def test_the_process_ends_with_its_parent(end: str) -> None:
    program = f"""
import multiprocessing, os, signal
from evals.grading.symbolic import equal
equal("9", "18/2")
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
{end}
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    (process,) = map(int, done.stdout.split())
    until = time.monotonic() + 10
    while Path(f"/proc/{process}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{process}").exists()
    assert end or not done.stderr


def test_threads_ask_at_the_same_time_and_no_text_raises() -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = ["18/2", "8", "\ud800", "\x00", "}{", "18/2"]
        assert list(threads.map(symbolic.equal, ["9"] * 6, answers)) == [True, False, False, False, False, True]


def test_without_the_checker_an_answer_is_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError")
    symbolic.close()
    monkeypatch.syspath_prepend(tmp_path)
    assert symbolic.equal("9", "18/2") is None
    assert scores("9", r"\boxed{9\cos{0}}") == (False, "undecided")
    assert scores("9", r"\boxed{9}") == (True, "number")
    assert grading.formula(r"\boxed{x+1}", "1 + x").kind == "undecided"
    symbolic.close()
