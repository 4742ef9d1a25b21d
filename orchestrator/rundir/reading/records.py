"""Reading records.jsonl, where the first record of each (problem, sample) counts, and scores.jsonl.

The latter holds the newer scores of a run that was graded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evals.record import Record, RecordKey, read_line
from evals.types import Amount, Grade, Thought, Tolerant, UserError
from orchestrator.rundir.directory import RECORDS, read_run
from orchestrator.rundir.extents import Extent, limits
from orchestrator.rundir.files import Tail

SCORES = "scores.jsonl"


class RecordLog:
    """Reads a record log beside its run's run.json, whole or as it grows; an unfinished last line is not read."""

    def __init__(self, path: Path) -> None:
        self._path, self._tail, self._num_lines = path, Tail(path), 0
        self._limits = self._read_limits()
        self._known: set[RecordKey] = set()

    def read(self) -> list[Record]:
        """The records added since the last call, only the first of each key. Raises UserError, which names the line,
        for one that is no record of the run."""
        added = []
        for line in self._tail.lines():
            self._num_lines += 1
            try:
                record = read_line(line, Record)
                if beyond := self._beyond(record):
                    self._limits = self._read_limits()  # the run may have grown
                    if beyond := self._beyond(record):
                        raise ValueError(beyond)
            except ValueError as error:
                raise UserError(
                    f"{self._path}, line {self._num_lines}: not a record ({error}); repair or remove that line (its "
                    "problem is then owed again), or start over in a new directory.",
                    ("fresh",),
                ) from error
            if (key := record.key) not in self._known:
                self._known.add(key)
                added.append(record)
        return added

    def _read_limits(self) -> dict[str, int]:
        return limits(read_run(self._path.parent) or {})

    def _beyond(self, record: Record) -> str:
        """The sentence that the record is beyond the run's limits; empty if it is not."""
        names = [name for name, limit in self._limits.items() if getattr(record, name) >= limit]
        return "; ".join(
            f"{name} is {getattr(record, name)}, but the run has 0 to {self._limits[name] - 1}" for name in names[:1]
        )


def first_records(path: Path) -> dict[RecordKey, Record]:
    """The first record of each key in a log, in its order."""
    return {record.key: record for record in RecordLog(path).read()}


def answered_records(directory: Path, extent: Extent | None = None) -> dict[RecordKey, Record]:
    """The records of a run by key, see `first_records`; those of an extent if one is given. Raises UserError if there
    is none."""
    records = first_records(directory / RECORDS)
    if extent is not None:
        records = {key: record for key, record in records.items() if key in extent}
    if not records:
        raise UserError(
            f"The run in {directory} has no answer yet ({RECORDS} is missing or empty); go on with it first, or "
            "restore the file."
        )
    return records


@dataclass(frozen=True)
class NewScores(Tolerant):
    """A line of scores.jsonl: the newer scores of one record, and its thought as they took it."""

    problem_id: Amount
    sample_index: Amount
    scores: dict[str, Grade]
    thought: Thought = 0


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
            new[row.problem_id, row.sample_index] = {"scores": row.scores, "thought": row.thought}
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: not the scores of a record ({error}); make the file again by "
                f"`powersample regrade {directory}`, or delete it to have the run's own scores back."
            ) from error
    rescored = [replace(record, **new.get(record.key, {})) for record in records]
    return rescored, sum(verdicts(old) != verdicts(now) for old, now in zip(records, rescored, strict=True))


def verdicts(record: Record) -> dict[str, bool]:
    return {name: grade.correct for name, grade in record.scores.items()}
