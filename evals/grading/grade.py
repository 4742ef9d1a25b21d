r"""All named scores of one answer. Knows no model, no prompt and no run.

`strict` and `flexible` are lm-eval's, `numeric` is ours: exact for numbers, and for what is none (`\frac{18}{2}`) the
verdict of a symbolic checker. Where that cannot decide (it is not installed, it took too long, it raised) the answer
counts as wrong and its kind is `undecided`, which reports count: it is never the answer's fault unnoticed.
"""

from __future__ import annotations

from evals.grading.formula import formula
from evals.grading.numeric import gold_text, numeric
from evals.grading.strict_flexible import COT_STRICT, STRICT, flexible, strict
from evals.grading.symbolic import Verdict, judge
from evals.types import Grade, Problem


def grade(text: str, problem: Problem, *, cot: bool = False, formulas: bool = False) -> dict[str, Grade]:
    """Scores of a text that is already cut at its stop string.

    `cot`: `strict` looks for "The answer is", as lm-eval's chain-of-thought tasks do. `formulas`: golds may be LaTeX;
    there is then the score `numeric` alone, since string comparison means nothing.
    """
    if formulas:
        return {"numeric": formula(text, gold_text(problem), judge().equal)}
    return {
        "strict": strict(text, problem.answer, COT_STRICT if cot else STRICT),
        "flexible": flexible(text, problem.answer),
        "numeric": settled(numeric(text, problem), gold_text(problem)),
    }


def settled(found: Grade, gold: str) -> Grade:
    """The grade with a verdict on an answer of kind `complex`; a percentage among those is wrong without asking."""
    if found.kind != "complex" or found.answer is None or "%" in found.answer or "percent" in found.answer:
        return found
    return judged(judge().equal(gold.replace(",", ""), found.answer.rstrip(". ")), found.answer)


def judged(verdict: Verdict, answer: str) -> Grade:
    """A symbolic verdict as a grade."""
    return Grade(bool(verdict.right), answer, "undecided" if verdict.right is None else "complex")
