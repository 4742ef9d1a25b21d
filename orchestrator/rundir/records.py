"""Reading records.jsonl: one record a line, the first of each (problem, sample) counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.types import Record, UserError
from orchestrator.rundir import schemas
from orchestrator.rundir.directory import RECORDS, flatten, read_run
from orchestrator.rundir.files import Tail

RecordKey = tuple[int, int]
"""(problem_id, sample_index)."""


class RecordLog:
    """A record log beside the run.json of its run, whole or as it grows; what follows the last newline is not read."""

    def __init__(self, path: Path) -> None:
        self._path, self._tail, self._num_lines = path, Tail(path), 0
        said = flatten(read_run(path.parent) or {})
        self._limits = {"problem_id": said.get("num_problems"), "sample_index": said.get("config.num_samples")}
        self._known: set[RecordKey] = set()

    def read(self) -> list[Record]:
        """The records that the log has gained and that count, the first of each key. Raises UserError, which names the
        line, for one that is no record of the run."""
        gained = []
        for line in self._tail.lines():
            self._num_lines += 1
            try:
                record = decode(line, self._limits)
            except ValueError as error:
                raise UserError(
                    f"{self._path}, line {self._num_lines}: not a record ({error}); repair or remove that line (its "
                    "problem is then owed again), or start over with --fresh."
                ) from error
            if (key := key_of(record)) not in self._known:
                self._known.add(key)
                gained.append(record)
        return gained


def first_records(path: Path) -> dict[RecordKey, Record]:
    """The records of a log that count, in its order."""
    return {key_of(record): record for record in RecordLog(path).read()}


def key_of(record: Record) -> RecordKey:
    return record.problem_id, record.sample_index


def answers(directory: Path) -> dict[RecordKey, Record]:
    """The records of a run, as `first_records`. Raises UserError if there is none."""
    first = first_records(directory / RECORDS)
    if not first:
        raise UserError(
            f"The run in {directory} has no answer yet ({RECORDS} is missing or empty); go on with it first, or "
            "restore the file."
        )
    return first


def encode(record: Record) -> bytes:
    """A record as one line of strict JSON. Raises ValueError on NaN or infinity, TypeError on what is not JSON."""
    return (json.dumps(record._asdict(), ensure_ascii=False, allow_nan=False) + "\n").encode()


def decode(line: bytes | str, limits: Mapping[str, Any]) -> Record:
    """The record of one line. Raises ValueError when it is none, or its numbers are not below those of `limits` (as far
    as these are numbers; a problem's number is its row)."""
    record = Record(**schemas.read(line, schemas.RecordLine))
    for name, limit in limits.items():
        if isinstance(limit, int) and not 0 <= getattr(record, name) < limit:
            raise ValueError(f"{name} is {getattr(record, name)}, but the run has 0 to {limit - 1}")
    return record
