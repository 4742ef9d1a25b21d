"""`powersample compare RUN RUN…`: prints paired differences between runs and the problems that flipped."""

from __future__ import annotations

import json
from argparse import Namespace

from evals.types import UserError
from orchestrator.analysis import comparison
from orchestrator.analysis.load import load_run
from orchestrator.commands.report import named_runs
from orchestrator.report.comparison_text import comparison_report, flips_text

NUM_FLIPS = 20


def compare(args: Namespace) -> int:
    """Print the comparison of the runs and the problems that flipped, as text or JSON; returns the exit code.

    Writes no file. Raises UserError for a user's mistake.
    """
    directories = named_runs(args)
    if len(directories) < 2:
        raise UserError("compare needs at least two run directories.")
    compared = comparison.compare([load_run(directory) for directory in directories], args.grader)
    if args.json:
        print(json.dumps(comparison.as_json(compared, args.flips), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        flips = flips_text(compared, NUM_FLIPS if args.flips is None else args.flips, args.texts)
        print(comparison_report(compared, None), flips, sep="\n", end="")
    return 0
