r"""The table of data formats, each with its graders: all named scores of one answer.

`strict` and `flexible` are lm-eval's, `numeric` is ours: exact for numbers, and for what is none (`3\sqrt{4x}`) the
verdict of a symbolic checker. Where that cannot decide (it is not installed, it took too long, it raised) the answer
counts as wrong and its kind is `undecided`, which reports count: it is never the answer's fault unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

from evals.grading.cut_off import finished
from evals.grading.formula import formula, formula_vote, judged
from evals.grading.lm_eval import flexible, strict
from evals.grading.numeric import number_vote, numeric
from evals.grading.symbolic import equal
from evals.types import Answer, Grade, Problem

Scores = Callable[[Answer, Problem, bool], dict[str, Grade]]
"""(answer, problem, cot) -> grades by name."""
NUMERIC, FORMULA = 2, 2
"""Versions of our graders, to be raised whenever a verdict can change; strict and flexible stay lm-eval's, and 1."""


class Format(NamedTuple):
    """What the answers in a data set are, and how a model's are graded by them; `task.name` names one."""

    scores: Scores
    """Named scores of an answer; reports put `numeric` first."""
    vote: Callable[[str], str | None]
    """The final answer of a `readable` text for a vote: equal strings for equal answers; None where there is none."""
    words: str
    """Description for the help."""
    golds: Literal["number", "text", "none"] = "text"
    """Golds are a number after `####`, the whole answer or what stands after its `####`, or there are none."""
    primary: str = "numeric"
    """Name of the score `numeric` in tables."""


def gsm8k(answer: Answer, problem: Problem, cot: bool) -> dict[str, Grade]:
    """Scores of a worked answer; `cot`: `strict` looks for "The answer is", as lm-eval's chain-of-thought tasks do."""
    return {
        "strict": strict(answer.text, problem.solution, cot),
        "flexible": flexible(answer.text, problem.solution),
        "numeric": final(answer, NUMERIC, lambda text: settled(numeric(text, problem), problem.gold)),
    }


def alone(grader: Callable[[str, str], Grade], version: int = 1) -> Scores:
    """Scores of a format with one grader of (text, gold), under the name `numeric`."""
    return lambda answer, problem, cot: {"numeric": final(answer, version, lambda text: grader(text, problem.gold))}


def final(answer: Answer, version: int, grader: Callable[[str], Grade]) -> Grade:
    """The grade, by a grader of this version, of what is readable of an answer."""
    text, said = readable(answer), behind_thought(answer)
    missing = Grade(False, None, "open thought" if said is None else "unfinished")
    grade = replace(missing if text is None else grader(text), version=version)
    if said is not None and text != said and (as_it_stands := grader(said).correct) != grade.correct:
        grade = replace(grade, correct_as_it_stands=as_it_stands)
    return grade


def readable(answer: Answer) -> str | None:
    """The text in which the final answer is looked for: behind the thought, and of a cut-off text what is `finished`;
    None where there is none."""
    said = behind_thought(answer)
    return finished(said) if said is not None and answer.cut_off else said


def behind_thought(answer: Answer) -> str | None:
    return None if answer.thought == "open" else answer.text[answer.thought :]


def settled(grade: Grade, gold: str) -> Grade:
    """The grade with a symbolic verdict if its kind is `complex`; a percentage among those is wrong in any case."""
    if grade.kind != "complex" or grade.answer is None or "%" in grade.answer or "percent" in grade.answer:
        return grade
    return judged(equal(gold.replace(",", ""), grade.answer.rstrip(". ")), grade.answer)


def score_name(name: str, task: str) -> str:
    """The name of a score in tables of a task: that of the format for `numeric`."""
    return FORMATS[task].primary if name == "numeric" and task in FORMATS else name


FORMATS: Mapping[str, Format] = {
    "gsm8k": Format(gsm8k, number_vote, "worked answer, #### number", golds="number"),
    "math": Format(
        alone(formula, FORMULA),  # comparing strings would mean nothing
        formula_vote,
        "the answer alone, a number or LaTeX, judged by math-verify",
        primary="math",
    ),
    "open": Format(lambda *_: {}, number_vote, "no answer, nothing is graded", golds="none"),
}
