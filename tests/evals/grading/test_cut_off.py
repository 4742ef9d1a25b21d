"""A text that was cut off counts where its answer is whole, and only there."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest

from evals.config import TaskConfig
from evals.grading.cut_off import finished
from evals.grading.numeric import extract
from evals.tasks.task import make_task
from evals.types import Answer, Problem

PROBLEM = Problem.from_answer(0, "?", "#### 18")
TASK = make_task(TaskConfig(), seed=0)


@pytest.mark.parametrize(
    "text",
    [
        "#### 18\n",
        "#### 18 eggs",
        "#### 18\n\nLet me check: 3 * 6",
        r"So \boxed{18}",
        r"So \boxed{18} and not \boxed{17",
        "The answer is 18 dollars",
        "The answer is 18. Then we",
        "The answer is 18.\n",
        "The answer is $18$",
        "The answer is 18. So the answer is 1",
        "The answer is 18. So the answer is",
        "#### 18\n#### 1",
    ],
)
def test_a_finished_mark_counts(text: str) -> None:
    grade = TASK.grade(PROBLEM, Answer(text, cut_off=True))["numeric"]
    assert (grade.correct, grade.answer, grade.kind) == (True, "18", "number")
    assert TASK.vote(Answer(text, cut_off=True)) == "18"


@pytest.mark.parametrize(
    "text",
    [
        "So 3*6=<<3*6=18>>18 sips. Then multiply the number of sips by the",
        "18",
        "7 and 18",
        "#### 18",
        "#### 18 ",
        "#### 18.",
        "#### 1,0",
        "The answer is 18",
        "The answer is 18.",
        "The answer is $18",
        "The answer is 18/",
        r"So \boxed{18",
        "There are 18 of them. Thus 7",
        "There are 18 of them. Thus 8",
        "",
    ],
)
def test_a_number_that_may_go_on_is_none(text: str) -> None:
    answer = Answer(text, cut_off=True)
    grade = TASK.grade(PROBLEM, answer)["numeric"]
    assert (grade.correct, grade.answer, grade.kind) == (False, None, "unfinished")
    assert TASK.vote(answer) is None
    whole = TASK.grade(PROBLEM, Answer(text))["numeric"]
    assert grade.correct_as_it_stands == (True if whole.correct else None)


def test_where_a_text_is_cut_decides_nothing_but_whether_it_counts() -> None:
    """Of every beginning of a text either nothing counts, or what the whole text says."""
    text = "She has 7 + 11 = 18 eggs.\nThe answer is 1,218.50 dollars, since 2 of 9 are broken.\n#### 1,218.50\nDone."
    counted = 0
    for end in range(len(text)):
        if (kept := finished(text[:end])) is not None:
            assert extract(kept).value == Decimal("1218.50"), text[:end]
            counted += 1
    assert counted > len(text) / 3


def test_formulas_follow_the_rule() -> None:
    task = make_task(TaskConfig(preset="math500"), 0)
    problem = Problem.from_answer(0, "?", r"\frac{1}{2}")
    for text, right in {
        r"It is \boxed{\frac{1}{2}}, as": True,
        r"It is \boxed{\frac{1}{2}": False,
        "1/2": False,
    }.items():
        assert task.grade(problem, Answer(text, cut_off=True))["numeric"].correct == right


def test_a_thought_and_a_cut_together() -> None:
    text = "<think>The answer is 5.\n</think>The answer is 18"
    thought = text.index("</think>") + len("</think>")
    assert TASK.grade(PROBLEM, Answer(text, thought, cut_off=True))["numeric"].kind == "unfinished"
    assert TASK.grade(PROBLEM, Answer(f"{text}.\n", thought, cut_off=True))["numeric"].answer == "18"


@pytest.mark.parametrize("piece", ["18. ", "answer is 1. ", "\\boxed{", "#### 1\n", "answer is ", "1,111"])
def test_cut_off_texts_take_linear_time(piece: str) -> None:
    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        began = time.process_time()
        finished(text)
        return time.process_time() - began

    shorter, longer = (min(seconds(length) for _ in range(3)) for length in (5_000, 20_000))
    assert longer < 6 * shorter + 0.05, "quadratic time would be 16 times"
