r"""Answers to problems whose golds are LaTeX, such as MATH's: numbers by value, the rest symbolically.

The answer is looked for where numeric.py looks. What a checker must decide is given to `equal`; knows no process.
"""

from __future__ import annotations

from collections.abc import Callable

from evals.grading.numeric import NUMBER, after_hashes, after_phrase, boxed, cleaned, find, last_box, number_vote, value
from evals.grading.symbolic import Verdict
from evals.types import Grade


def formula(text: str, gold: str, equal: Callable[[str, str], Verdict]) -> Grade:
    """Is the final answer of `text` the same as `gold`?

    The same spelling is right without asking; two numbers are compared exactly, and a percentage is right only where
    the gold is one; for all else `equal` (gold, answer) decides.
    """
    segment = final(text)
    if segment is None:
        return Grade(False, None, "none")
    gold = cleaned(gold).strip()
    if squeezed(segment) == squeezed(gold):
        return Grade(True, segment, "complex")
    found, wanted = boxed(segment), NUMBER.fullmatch(gold)
    if found.value is not None and wanted is not None:
        return Grade(found.value == value(wanted) and found.percent <= (wanted[4] is not None), found.shown, "number")
    verdict = equal(gold, segment)
    return Grade(bool(verdict.right), segment, "undecided" if verdict.right is None else "complex")


def formula_vote(text: str) -> str | None:
    """What a text comes to: numbers as `number_vote` writes them, a formula as it is written."""
    shown = find(text).shown
    return number_vote(text) or (shown and squeezed(shown))


def final(text: str) -> str | None:
    """The final answer as it is written, without the typography that numeric.py removes, too."""
    text = cleaned(text)
    for segment in (last_box(text), after_hashes(text), after_phrase(text)):
        if segment is not None and segment.strip():
            return segment.strip().rstrip(".").strip("$ ")
    numbers = [match[0].strip() for match in NUMBER.finditer(text)]
    return numbers[-1] if numbers else None


def squeezed(text: str) -> str:
    return "".join(text.split())
