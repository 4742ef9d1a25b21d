"""Answers in twenty styles, and to questions like MATH's, each with the verdict of a person who knew no grader.

They were written, verdicts first, before any was graded; of 260 the graders of that day decided two otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path

from evals.config import TaskConfig
from evals.tasks.task import make_task
from evals.thoughts import USUAL_END, thought_in
from evals.types import Answer, Problem

ROWS = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text("utf-8").splitlines()]
IN_WORDS = {"millions-5"}
"""Numbers in words alone ("two million"), which are not read."""


def verdict(row: dict[str, str]) -> bool:
    task = make_task(TaskConfig(name="math" if row["task"] == "math" else "gsm8k"), 0)
    problem = Problem.from_answer(0, row.get("question", ""), row["gold"])
    return task.grade(problem, Answer(row["text"], thought_in(row["text"], USUAL_END)))["numeric"].correct


def test_every_verdict_is_that_of_a_person() -> None:
    assert len(ROWS) == 260
    assert 150 < sum(row["right"] for row in ROWS) < 190
    assert {row["id"] for row in ROWS if verdict(row) != row["right"]} == IN_WORDS
