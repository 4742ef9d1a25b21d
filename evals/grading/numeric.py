r"""Grades answers that are numbers, exactly: `numeric` reads the final answer of a text and compares rationals.

No tolerance, no rounding, no factor 100: 18.00 and \frac{36}{2} are 18, 18.0000001 is not. The answer stands where
place.py says, else it is the text's last number. Every step takes time linear in the text.

An answer of kind `complex` (a formula without an exact value) is not correct here; grade.py has a symbolic checker
decide those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

from evals.grading.expression import DIGITS, SCALES, Value, computed, written
from evals.grading.place import DIGIT, Place, after_equals, find, last_line
from evals.grading.reading import Found, last, read
from evals.grading.spelling import bare, plain
from evals.types import Grade, Problem, UserError

GOLD = re.compile(rf"[-\u2212]?[$€£]?[-\u2212]?(?:{DIGITS})(?:\s?(?:%|percent\b))?")
"""What a gold that is a number can be."""

SCALE = re.compile(r"\b(?:in|many)\s+(hundred|thousand|million|billion|trillion)s\b")


def numeric(text: str, problem: Problem) -> Grade:
    """Grade whether the final answer of `text` (cut at its stop string) is the problem's gold.

    The grade's answer is the number without commas and currency, or what stands in its place if `several` or `complex`.
    A percentage counts only if the problem asks for one; where it asks for millions, 2 million is 2, too. Raises
    UserError if the gold is no number.
    """
    gold = read(plain(problem.gold), whole=True) if GOLD.fullmatch(problem.gold) else None
    if gold is None:
        raise UserError(f"Problem {problem.problem_id}: the gold is {problem.gold!r}, not a number; correct the data.")
    answer = extract(text)
    correct = answer.value is not None and answer.value in right_values(problem, gold)
    correct = correct and (not answer.percent or asks_percent(problem))
    return Grade(correct, answer.shown, answer.kind)


def number_vote(text: str) -> str | None:
    """The final number of a text for a vote, equal numbers written alike: 18 for 18.00, 18% for 18.0 per cent."""
    return vote_of(extract(text))


def vote_of(answer: Found) -> str | None:
    """An extracted number in the spelling in which equal numbers are equal; None if it is none."""
    if answer.value is None:
        return None
    digits = written(answer.value)
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return ("0" if not answer.value else digits) + ("%" if answer.percent else "")


def asks_percent(problem: Problem) -> bool:
    """Whether the answer is a percentage, by the last line of the reasoning or the question's last sentence."""
    return bool(behind_gold(r"\s?(%|percent\b)", problem)) or "percent" in last_sentence(problem.question)


def right_values(problem: Problem, gold: Found) -> Iterator[Value | None]:
    """The values of a right answer: the gold, and where millions are asked for (as a percentage is), so many."""
    yield gold.value
    scale = behind_gold(r"\s(hundred|thousand|million|billion|trillion)\b", problem)
    scale = scale or SCALE.search(last_sentence(problem.question))
    if scale and gold.value is not None:
        yield computed("*", gold.value, Decimal(10 ** SCALES[scale[1]]))


def behind_gold(pattern: str, problem: Problem) -> re.Match[str] | None:
    """The match of `pattern` directly behind the gold in the last line of the reasoning."""
    last_line = problem.reasoning.rpartition("\n")[2].replace(",", "")
    return re.search(rf"(?<![\d.]){re.escape(problem.gold.replace(',', ''))}{pattern}", last_line)


def last_sentence(question: str) -> str:
    """The last sentence of a question, in lower case."""
    return re.split(r"(?<=[.!?])\s+", question.strip().lower())[-1]


def extract(text: str) -> Found:
    """The final answer of a text: the marked one, else what a last line `#### …` says, else the last number."""
    spelled = bare(plain(text))
    if place := find(spelled):
        return read_at(place)
    if (rest := last_line(spelled)) and DIGIT.search(rest):
        return read(after_equals(rest), whole=False)
    return last(spelled)


def read_at(place: Place) -> Found:
    """The answer that stands at a place."""
    return read(after_equals(place.text), whole=place.mark == "box")
