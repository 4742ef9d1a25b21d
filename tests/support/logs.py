"""Reads record logs as they were written."""

from pathlib import Path

from evals.record import Record, read_line
from orchestrator.rundir.files import Tail


def read_records(path: Path) -> list[Record]:
    """Every line of a record log, whether or not its key was there before."""
    return [read_line(line, Record) for line in Tail(path).lines()]
