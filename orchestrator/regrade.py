"""`powersample regrade RUN`: score a run's texts again with the graders of this version, without a model.

The new scores go to `scores.jsonl` beside `records.jsonl`, and reports read them over the records' own. The log stays
as it was sampled: it is the one file that cannot be made again, while scores can, and deleting scores.jsonl brings the
first ones back. Knows no engine and no layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from evals.config import TaskConfig
from evals.grading.grade import FORMATS
from evals.tasks.presets import PRESETS
from evals.types import Problem, Record, UserError
from orchestrator.arguments import path_and_options
from orchestrator.asked import problems_of, task_of
from orchestrator.claim import check_lock, read_graded
from orchestrator.durable import write_atomically
from orchestrator.report import report
from orchestrator.rescored import SCORES
from orchestrator.store import answers

USAGE = """usage: powersample regrade RUN [--data FILE]

Scores the texts in RUN again without a model: writes scores.jsonl beside records.jsonl, then summary and report. The
data is found by what run.json says of it, or named by --data; its digest must be the run's."""


def regrade(arguments: Sequence[str]) -> int:
    """Score a run again and write its report; returns the exit code. Raises UserError for what the user can mend."""
    if (asked := path_and_options(arguments, USAGE, ["--data"])) is None:
        return 0
    directory, given = asked
    run = read_graded(directory)
    check_lock(directory)
    records = answers(directory)
    task, problems = task_of(directory, run), problems_of(directory, run, given.get("--data"))
    lines = [rescored(record, problems, task) for record in records.values() if record.status == "ok"]
    try:
        write_atomically(directory / SCORES, "".join(lines))
    except OSError as error:
        raise UserError(f"{directory / SCORES} cannot be written ({error.strerror}); make it writable.") from error
    return report([str(directory)])


def rescored(record: Record, problems: Mapping[int, Problem], task: TaskConfig) -> str:
    """One line of scores.jsonl."""
    preset, problem = PRESETS[task.preset], problems[record.problem_id]
    grades = FORMATS[task.name].scores(record.text, problem, preset.cot)
    scores = {name: one._asdict() for name, one in grades.items()}
    row = {"problem_id": record.problem_id, "sample_index": record.sample_index, "scores": scores}
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
