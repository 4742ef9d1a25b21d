"""A run directory read and summarised: the value that reports, comparisons and exports start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evals.types import Record, UserError
from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.analysis.summary import summarise
from orchestrator.rundir.directory import RECORDS, TELEMETRY
from orchestrator.rundir.files import Tail
from orchestrator.rundir.manifest import Manifest
from orchestrator.rundir.records import answers
from orchestrator.rundir.scores import with_new_scores
from orchestrator.rundir.telemetry import readable


class Run(NamedTuple):
    """A run as a report needs it."""

    manifest: Manifest
    summary: Mapping[str, Any]
    records: Sequence[Record]
    telemetry: Sequence[Mapping[str, Any]] = ()
    label: str = ""
    """The method, in a comparison made distinct."""

    @property
    def directory(self) -> Path:
        return self.manifest.directory


def load_run(directory: Path) -> Run:
    """A run directory, summarised. Raises UserError if it is none or has no answer."""
    run = Manifest.read(directory, graded=True)
    first = answers(directory)
    records = [first[key] for key in sorted(first)]  # the order of completion must not reach the last digit of a mean
    records, num_changed = with_new_scores(directory, records)
    check_scores(directory, records)
    written = Tail(directory / TELEMETRY).lines()
    telemetry = readable(written)
    summary = summarise(records, telemetry, run, len(written) - len(telemetry), num_changed)
    return Run(run, summary, records, telemetry, run.method)


def check_scores(directory: Path, records: Sequence[Record]) -> None:
    """Raises UserError if an answer lacks the score that every report has."""
    for record in records:
        if record.status == "ok" and "kind" not in record.scores.get(PRIMARY_METRIC, {}):
            raise UserError(
                f"{directory / RECORDS}: sample {record.sample_index} of problem {record.problem_id} has no "
                f"{PRIMARY_METRIC} score; `powersample regrade {directory}` scores the texts again."
            )
