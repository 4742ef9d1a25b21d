"""Derived files of finished or unfinished runs: summary.json and report.md, made again from the log at any time.

Reads run.json, records.jsonl and telemetry.jsonl and never writes to them. Knows no worker; layout is render.py's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from evals.types import UserError
from orchestrator.compare import Run, compare
from orchestrator.reduce import summarise
from orchestrator.render import comparison_report, run_report
from orchestrator.store import RECORDS, RUN, TELEMETRY, first_records, read_run, write_atomically
from orchestrator.telemetry import scan_telemetry

SUMMARY, REPORT = "summary.json", "report.md"


def report(paths: Sequence[str]) -> int:
    """`powersample report RUN…`: print the report of one run, or the comparison of several. Returns the exit code.

    Raises UserError for a directory that is missing or holds no run.
    """
    print(write_report([Path(path) for path in paths]), end="")
    return 0


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> str:
    """Write summary.json and report.md into every run directory; return what to print.

    For several runs that is their comparison, which also goes to `out` (a file, or a directory for its report.md).
    Raises UserError for a directory that is missing or holds no run, and for runs that cannot be compared.
    """
    if not run_dirs:
        raise UserError("No run directory was given; name at least one, as in `powersample report runs/demo/power`.")
    runs = [read(directory) for directory in run_dirs]
    texts = [run_report(run.summary) for run in runs]
    comparison = comparison_report(compare(runs)) if len(runs) > 1 else None
    for run, text in zip(runs, texts, strict=True):
        summary = json.dumps(run.summary, indent=2, ensure_ascii=False, allow_nan=False)
        write(run.directory / SUMMARY, summary + "\n")
        write(run.directory / REPORT, text)
    if comparison is None:
        return texts[0]
    if out is not None:
        write(out / REPORT if out.is_dir() else out, comparison)
    return comparison


def read(directory: Path) -> Run:
    """A run directory, summarised. Raises UserError if it is none."""
    if not directory.is_dir():
        raise UserError(f"There is no run directory {directory}; give the path that the run printed when it started.")
    run = read_run(directory)
    if run is None:
        raise UserError(f"{directory} is not a run directory (it has no {RUN}); give the directory of one run.")
    first = first_records(directory / RECORDS)
    records = [first[key] for key in sorted(first)]  # the order of completion must not reach the last digit of a mean
    telemetry, num_damaged = scan_telemetry(directory / TELEMETRY)
    return Run(directory, summarise(records, telemetry, run, num_damaged), records)


def write(path: Path, text: str) -> None:
    """Replace a derived file. Raises UserError if it cannot be written."""
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"The report cannot be written to {path} ({error.strerror}); make it writable.") from error
