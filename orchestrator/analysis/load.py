"""Loads and summarises a run directory, for reports, comparisons and exports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evals.grading.grade import score_name
from evals.record import Record
from evals.types import UserError
from orchestrator.analysis.accuracy import PRIMARY_METRIC, graders
from orchestrator.analysis.summarise import summarise
from orchestrator.analysis.summary import Summary
from orchestrator.rundir.directory import RECORDS, TELEMETRY
from orchestrator.rundir.files import Tail
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.reading.records import answered_records, with_new_scores
from orchestrator.rundir.reading.telemetry import readable
from orchestrator.rundir.telemetry_rows import TelemetryRow


class Run(NamedTuple):
    """A loaded run: its summary, and the records and telemetry that it is of."""

    summary: Summary
    records: Sequence[Record]
    telemetry: Sequence[TelemetryRow] = ()
    label: str = ""
    """The method; made unique in a comparison."""

    @property
    def manifest(self) -> Manifest:
        return self.summary.run

    @property
    def directory(self) -> Path:
        return self.manifest.directory


def load_run(directory: Path) -> Run:
    """Load the run in `directory`. Raises UserError if there is none or it has no answer."""
    manifest = Manifest.read(directory, graded=True)
    by_key = answered_records(directory, manifest.extent)
    records = [by_key[key] for key in sorted(by_key)]  # the order of completion must not reach the last digit of a mean
    records, num_changed = with_new_scores(directory, records)
    check_scores(directory, records)
    check_versions(directory, records)
    lines = Tail(directory / TELEMETRY).lines()
    telemetry = readable(lines)
    of_all = [] if manifest.is_part else telemetry  # it tells nothing of a part
    summary = summarise(records, of_all, manifest, len(lines) - len(telemetry), num_changed)
    return Run(summary, records, telemetry, manifest.method)


def stored_score(run: Run, grader: str) -> str:
    """The name in the run's records of a score, which may be given as tables call it. Raises UserError if the run
    lacks it."""
    names = {score_name(name, run.manifest.task): name for name in run.summary.accuracy}
    if grader not in names and grader not in names.values():
        raise UserError(f"The run {run.directory} has no score {grader}; it has {', '.join(names)}.")
    return names.get(grader, grader)


def check_versions(directory: Path, records: Sequence[Record]) -> None:
    """Raises UserError if the answers were graded by different versions of a score, as of a run that went on."""
    for name in graders(records):
        counts = Counter(record.scores[name].version for record in records if name in record.scores)
        if len(counts) > 1:
            versions = ", ".join(f"version {version}: {number:,}" for version, number in sorted(counts.items()))
            raise UserError(
                f"The answers of {directory} were graded by different versions of the score {name} ({versions}), which "
                f"may decide differently; `powersample regrade {directory}` grades all by the present one."
            )


def check_scores(directory: Path, records: Sequence[Record]) -> None:
    """Raises UserError if an answer lacks the score that every report has."""
    for record in records:
        if record.status == "ok" and PRIMARY_METRIC not in record.scores:
            raise UserError(
                f"{directory / RECORDS}: sample {record.sample_index} of problem {record.problem_id} has no "
                f"{PRIMARY_METRIC} score; `powersample regrade {directory}` scores the texts again."
            )
