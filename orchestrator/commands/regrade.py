"""`powersample regrade`: grades the texts of a run again, into scores.jsonl.

Reports read scores.jsonl over the records' own scores. records.jsonl stays as it was sampled: it is the one file that
cannot be made again, while scores can, and deleting scores.jsonl brings the first ones back.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter

from evals.grading.symbolic import check_installed
from evals.record import Record, as_json
from evals.tasks.task import make_task
from evals.thoughts import USUAL_END, thought_in
from evals.types import Answer, Thought
from orchestrator.console import say
from orchestrator.inputs.prompts import problems_of, task_of
from orchestrator.report.make import print_reports
from orchestrator.rundir.directory import check_lock
from orchestrator.rundir.files import write_atomically, writing
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.reading.records import SCORES, answered_records


def regrade(args: Namespace) -> int:
    """Grade a run again and write its report; returns the exit code. Raises UserError for what the user can mend."""
    check_installed()
    directory = args.run
    run = Manifest.read(directory, graded=True)
    check_lock(directory)
    records = answered_records(directory)
    task, problems = make_task(task_of(run), 0), problems_of(run, args.data)
    rows, changed = [], Counter[str]()
    for record in records.values():
        if record.status == "ok" and record.problem_id in problems:
            thought = thought_of(record, args.thought_end)
            answer = Answer(record.text, thought, record.ended == "length")
            grades = task.grade(problems[record.problem_id], answer)
            row = {"problem_id": record.problem_id, "sample_index": record.sample_index, "scores": as_json(grades)}
            row |= {"thought": thought} if thought else {}
            rows.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            before = {name: grade.correct for name, grade in record.scores.items()}
            changed.update(name for name, grade in grades.items() if before.get(name) != grade.correct)
    with writing(directory / SCORES, "make it writable"):
        write_atomically(directory / SCORES, "".join(rows))
    by_name = ", ".join(f"{name} {number:,}" for name, number in changed.items())
    say(f"{directory}: verdicts that changed on {len(rows):,} answers: {by_name or 'none'}.")
    print_reports([directory])
    return 0


def thought_of(record: Record, end: str | None) -> Thought:
    """How much of a record's text is thought: what it says, by its tokens; of an older one, which does not know, and
    where an `end` is named, by its text."""
    knows = any(grade.version > 1 for grade in record.scores.values())
    return record.thought if knows and end is None else thought_in(record.text, USUAL_END if end is None else end)
