"""`powersample score FILE.jsonl`: grades texts from anywhere and prints their verdicts."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from evals.grading.grade import FORMATS
from evals.grading.symbolic import check_installed
from evals.stopping import cut
from evals.tasks.presets import PRESETS
from evals.thoughts import thought_in
from evals.types import Answer, Problem, UserError
from orchestrator.inputs.rows import AnswerRow, check_gold, read_rows, refusal
from orchestrator.settings.parser import suggestion


def score(args: Namespace) -> int:
    """Grade a file and print the verdicts; returns the exit code.

    Raises UserError naming file and line for a row that cannot be graded; nothing has been printed then.
    """
    check_installed()
    name = args.preset
    if name not in PRESETS:
        raise UserError(f"--preset {name} is refused{suggestion(name, PRESETS)}; there are {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    form = FORMATS["gsm8k" if preset.format == "open" else preset.format]
    verdicts = []
    for row, problem in read_answers(args.file, form.golds):
        text = cut(row.text, preset.stop)
        answer = Answer(text, thought_in(text, args.thought_end), row.ended == "length")
        grades = form.scores(answer, problem, preset.cot)
        verdicts.append({"id": row.id, **{name: one.correct for name, one in grades.items()}})
        verdicts[-1]["answers"] = {name: one.answer for name, one in grades.items()}
    print("".join(json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in verdicts), end="")
    return 0


def read_answers(path: Path, golds: str) -> list[tuple[AnswerRow, Problem]]:
    """The rows of a file with what each is graded by. Raises UserError naming file and line."""
    rows: list[tuple[AnswerRow, Problem]] = []
    places: dict[str | int, str] = {}
    for number, (where, row) in enumerate(read_rows(path, AnswerRow, "name a file of rows")):
        problem = Problem.from_answer(number, row.question, row.gold)
        rows.append((row, check_gold(problem, golds, where, AnswerRow)))
        if (first := places.setdefault(row.id, where)) != where:
            raise refusal(where, f"the id {row.id!r} is also that of {first.rpartition(', ')[2]}", AnswerRow)
    if not rows:
        raise UserError(f"The file {path} has no rows; rows are {AnswerRow.form}.")
    return rows
