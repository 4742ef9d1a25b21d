"""Reading scores.jsonl, which holds the newer scores of a run that was graded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evals.record import Record, read_line
from evals.types import TOLERANT, Amount, Grade, UserError

SCORES = "scores.jsonl"


@dataclass(frozen=True)
class NewScores:
    """A line of scores.jsonl: the newer scores of one record."""

    __pydantic_config__ = TOLERANT

    problem_id: Amount
    sample_index: Amount
    scores: dict[str, Grade]


def with_new_scores(directory: Path, records: Sequence[Record]) -> tuple[list[Record], int | None]:
    """The records with the scores of scores.jsonl, and how many of them thereby have other verdicts.

    None instead of the number if there is no such file. A record that it does not name keeps its own scores: the run
    went on after the regrade. Raises UserError for a damaged line.
    """
    path, new = directory / SCORES, {}
    if not path.exists():
        return list(records), None
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):  # of bytes: a newline alone ends a line
        try:
            row = read_line(line, NewScores)
            new[row.problem_id, row.sample_index] = row.scores
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: not the scores of a record ({error}); make the file again by "
                f"`powersample regrade {directory}`, or delete it to have the run's own scores back."
            ) from error
    rescored = [replace(record, scores=new.get(record.key, record.scores)) for record in records]
    return rescored, sum(verdicts(old) != verdicts(now) for old, now in zip(records, rescored, strict=True))


def verdicts(record: Record) -> dict[str, bool]:
    return {name: grade.correct for name, grade in record.scores.items()}
