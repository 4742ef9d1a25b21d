"""`scores.jsonl`: scores that `powersample regrade` gave a run's records later, and that count instead of their own.

Knows no grader and no report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from evals.types import Record, UserError

SCORES = "scores.jsonl"


def with_new_scores(directory: Path, records: Sequence[Record]) -> tuple[list[Record], int | None]:
    """The records with the scores of scores.jsonl, and how many records have other verdicts then.

    None instead of a number where there is no such file. A record that it does not name keeps its own scores: the run
    went on after the regrade. Raises UserError for a damaged line.
    """
    path = directory / SCORES
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return list(records), None
    new = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            new[row["problem_id"], row["sample_index"]] = {name: dict(one) for name, one in row["scores"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path}, line {number}: not the scores of a record ({type(error).__name__}); make the file again by "
                f"`powersample regrade {directory}`, or delete it to have the run's own scores back."
            ) from error
    found = [
        record._replace(scores=new.get((record.problem_id, record.sample_index), record.scores)) for record in records
    ]
    return found, sum(verdicts(old) != verdicts(now) for old, now in zip(records, found, strict=True))


def verdicts(record: Record) -> dict[str, bool]:
    return {name: bool(score.get("correct")) for name, score in record.scores.items()}
