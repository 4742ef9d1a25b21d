"""`powersample report RUN…`: writes summary and report of runs again."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from orchestrator.console import say
from orchestrator.report.make import print_reports
from orchestrator.rundir.directory import RECORDS, runs_in
from orchestrator.rundir.reading.records import first_records


def report(args: Namespace) -> int:
    """Write and print the report of one run, or the comparison of several; returns the exit code.

    A directory of several runs stands for them. Raises UserError for a directory that is missing or holds no run.
    """
    print_reports(named_runs(args), grader=args.grader)
    return 0


def named_runs(args: Namespace) -> list[Path]:
    """The directories of the named runs; a directory of several stands for those of them that have answers."""
    directories: list[Path] = []
    for path in args.runs:
        inside = runs_in(path)
        with_answers = [run for run in inside if first_records(run / RECORDS)]
        for run in inside if with_answers else ():
            if run not in with_answers:
                say(f"{run} has no answer yet and is left out.")
        directories += with_answers or inside or [path]
    return directories
