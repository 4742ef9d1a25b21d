r"""Golds of MATH's forms, through the command line: each is right as its own answer, none as a changed one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from evals.grading.spelling import plain
from evals.grading.symbolic import equal
from support.command import in_process

FORMS = [
    "7", "-12", "3.5", "1,250,000", r"\frac{3}{4}", r"-\frac{7}{12}", r"\dfrac{14}{3}", r"3\sqrt{13}", r"\sqrt[3]{4}",
    r"\frac{1+\sqrt{5}}{2}", r"\pi", r"\frac{9\pi}{4}", r"e^{2}", "p - q", "x^2 - 7x + 12", r"2x^{3}y - 5",
    r"(x-3)(x+4)", "(3, -2)", r"\left(\frac{1}{2}, 5\right)", "[2, 7)", r"(-\infty, 4] \cup [9, \infty)",
    r"\{1, 4, 9\}",
    r"\begin{pmatrix} 1 & -2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 5 \\ -6 \end{pmatrix}", r"y = 2x + 3",
    r"x \leq 5", r"1 \pm \sqrt{6}", r"\text{B}", r"\text{Evelyn}", r"90^\circ", r"12\text{ cm}^2", r"30\%", r"\$24.50",
    r"2516_8", r"10\mbox{ inches}", r"\log_2 7", r"\binom{9}{3}", r"4 + 5i", "1, 5, 6", r"\frac{x+2}{x-6}",
]  # fmt: skip
SWAPS = {"+": "-", "-": "+", "(": "[", "[": "(", "]": ")", ")": "]", "x": "z", "y": "w", "p": "r", "q": "s", "i": ""}


def changes(gold: str) -> Iterator[str]:
    """The gold with a digit, an operator, a bracket or a letter changed, negated, or with something more."""
    for place, one in enumerate(gold):
        if one.isdecimal():
            yield from (f"{gold[:place]}{other}{gold[place + 1 :]}" for other in "1234567890" if other != one)
    for place in (
        match.start() for match in re.finditer(r"[-+()\[\]]|(?<![\\\w])[xypq](?!\w)|(?<=\d)[xyi](?!\w)", gold)
    ):
        yield gold[:place] + SWAPS[gold[place]] + gold[place + 1 :]
    if inner := re.search(r"\\text\{(\w+)\}", gold):
        yield from (gold.replace(inner[1], other) for other in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if other != inner[1])
        yield from (gold.replace(inner[1], f"{inner[1]}{other}") for other in "abcdefghijklmnop")
    yield from (f"-{gold}", f"2{gold}", f"{gold}x", f"\\sqrt{{{gold}}}", f"\\frac{{{gold}}}{{2}}")
    yield from (f"{gold} + {k}" for k in range(1, 60))


EQUAL = {
    r"[-\infty, 4] \cup [9, \infty)": r"(-\infty, 4] \cup [9, \infty)",
    r"(-\infty, 4] \cup [9, \infty]": r"(-\infty, 4] \cup [9, \infty)",
    r"\binom{9}{6}": r"\binom{9}{3}",
    **{rf"12\text{{ cm}}^{power}": r"12\text{ cm}^2" for power in "013456789"},
}
"""Changed gold -> gold that it equals; units are not compared."""
BASES = {(r"2516_8", f"2516_{base}") for base in "1234"}
"""(gold, answer) that math-verify finds equal."""


def pairs() -> list[tuple[str, str]]:
    """(gold, answer): forty changed answers to each gold; one that may be read as a sign or as a unit is left out."""
    found = []
    for gold in FORMS:
        unit = re.search(r"\\text\{ |\\mbox|\\circ", gold)
        changed = dict.fromkeys(
            one for one in changes(gold) if not one.startswith("--") and not (unit and one[-1] == "x")
        )
        found += [(gold, answer) for answer in [*changed][:40]]
    return found


def test_golds_of_every_form_are_right_as_their_own_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    solutions = [gold if i % 2 else rf"As 2 < 5, it is $\boxed{{{gold}}}$." for i, gold in enumerate(FORMS)]
    rows = [{"problem": f"Find number {i}.", "answer": solution} for i, solution in enumerate(solutions)]
    (data := tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model", "demo", "--data", data, "--task.preset", "math500", "--sampler.kind", "replay"]
    options += ["--sampler.texts", "gold", "--inline", "--num-gpus", 0, "--run-dir", tmp_path / "run"]
    assert in_process("run", *options) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["num_records"], summary["accuracy"]["numeric"]["mean"]) == (len(FORMS), 1.0)
    said = capsys.readouterr()
    assert "| math  | 100.0 % |" in said.out
    assert "math 100.0 %" in said.err, "the progress line"
    assert in_process("report", tmp_path / "run", "--grader", "math") == 0


@pytest.mark.slow
def test_forty_changed_answers_to_each_are_wrong_and_math_verify_agrees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = pairs()
    assert len(changed) == 40 * len(FORMS)
    rows = [{"id": i, "text": rf"So $\boxed{{{one}}}$.", "gold": gold} for i, (gold, one) in enumerate(changed)]
    (file := tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert in_process("score", file, "--preset", "math500") == 0
    verdicts = [json.loads(line)["numeric"] for line in capsys.readouterr().out.splitlines()]
    right = {one: gold for (gold, one), verdict in zip(changed, verdicts, strict=True) if verdict}
    assert right == EQUAL
    theirs = [bool(equal(plain(gold), plain(one))) for gold, one in changed]
    differing = {pair for pair, ours, other in zip(changed, verdicts, theirs, strict=True) if ours != other}
    assert differing == BASES
