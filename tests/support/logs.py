"""Reads record logs as they were written."""

from pathlib import Path

from evals.record import Record, decode
from orchestrator.rundir.files import Tail


def read_records(path: Path) -> list[Record]:
    """Every line of a record log, whether or not its key was there before."""
    return [decode(line, {}) for line in Tail(path).lines()]
