"""`powersample regrade`: grades the texts of a run again, into scores.jsonl.

Reports read scores.jsonl over the records' own scores. records.jsonl stays as it was sampled: it is the one file that
cannot be made again, while scores can, and deleting scores.jsonl brings the first ones back.
"""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict

from evals.tasks.task import make_task
from orchestrator.inputs.prompts import problems_of, task_of
from orchestrator.report.make import print_reports
from orchestrator.rundir.directory import check_lock
from orchestrator.rundir.files import write_atomically, writing
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.reading.records import SCORES, NewScores, answered_records


def regrade(args: Namespace) -> int:
    """Grade a run again and write its report; returns the exit code. Raises UserError for what the user can mend."""
    directory = args.run
    run = Manifest.read(directory, graded=True)
    check_lock(directory)
    records = answered_records(directory)
    task, problems = make_task(task_of(run), 0), problems_of(run, args.data)
    rows = []
    for record in records.values():
        if record.status == "ok":
            row = NewScores(*record.key, task.grade(problems[record.problem_id], record.text))
            rows.append(json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n")
    with writing(directory / SCORES, "make it writable"):
        write_atomically(directory / SCORES, "".join(rows))
    print_reports([directory])
    return 0
