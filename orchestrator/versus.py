"""`powersample compare RUN RUN …`: runs on their common problems, to read or as JSON. Writes no file.

What it says of the runs is what `powersample report` writes of them; the problems that flipped are added.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from evals.types import UserError
from orchestrator.arguments import paths_and_options, short
from orchestrator.claim import runs_in
from orchestrator.compare import Comparison, Pair, compare, flips
from orchestrator.render_comparison import comparison_report, flipped_texts, flips_table
from orchestrator.report import read
from orchestrator.scores import HEADLINE, number

USAGE = """usage: powersample compare RUN RUN [RUN ...] [--grader NAME] [--flips N] [--texts] [--json]

Compares runs on the problems that all of them have answered: paired differences with standard error, 95 % interval and
minimum detectable effect (MDE), exact McNemar tests (sign-flip permutation tests with several samples per problem),
Holm's correction, and the problems that flipped with every run's answer and text. Each run is compared with the
reference, the first run at temperature 1 or else the first, and each of power sampling with every other method. A
directory of runs, such as runs/demo, stands for them. Writes no file.

  --grader NAME   the score that is compared: strict, flexible or numeric (default: numeric)
  --flips N       flipped problems shown, those with the largest gaps first (default: 20; all with --json)
  --texts         whole texts of the flipped problems, of all samples (default: the end of one text of each run)
  --json          one JSON object instead of text: runs, pairs, flips with all answers and texts"""
NUM_FLIPS = 20


def versus(arguments: Sequence[str]) -> int:
    """Print the comparison that `arguments` ask for; returns the exit code. Raises UserError for a user's mistake."""
    if (asked := paths_and_options(arguments, USAGE, ["--grader", "--flips"], ["--texts", "--json"])) is None:
        return 0
    directories, given = asked
    directories = [run for path in directories for run in runs_in(path) or [path]]
    if len(directories) < 2:
        raise UserError(f"compare needs at least two run directories; {short(USAGE)}.")
    limit = given.get("--flips")
    if limit is not None and not limit.isdecimal():
        raise UserError(f"--flips {limit} is refused: it takes a whole number, 0 or more.")
    comparison = compare([read(directory) for directory in directories], given.get("--grader", HEADLINE))
    if "--json" in given:
        found = as_json(comparison, None if limit is None else int(limit))
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(comparison_report(comparison, None), end="")
        num = NUM_FLIPS if limit is None else int(limit)
        print("\n" + flips_table(comparison, num), flipped_texts(comparison, num, "--texts" in given), sep="\n", end="")
    return 0


def as_json(comparison: Comparison, limit: int | None) -> dict[str, Any]:
    """A comparison for scripts; what cannot be computed is None. `limit`: of the flipped problems, None for all."""
    labels = [label for label, _ in comparison.runs]
    return {
        "grader": comparison.grader,
        "reference": comparison.baseline,
        "num_common": len(comparison.common),
        "num_groups": comparison.num_groups or None,
        "test": "mcnemar" if comparison.single else "sign_flip",
        "asked_differently": comparison.asked,
        "runs": [
            {"label": label, "directory": str(run.directory), "fingerprint": run.summary["run"]["fingerprint"]}
            | {"accuracy": run.summary["accuracy"][comparison.grader], "warnings": run.summary["warnings"]}
            for label, run in comparison.runs
        ],
        "pairs": [pair_as_json(pair) for pair in comparison.pairs],
        "flips": [
            {"problem_id": flip.problem_id, "gold": flip.gold, "answers": dict(zip(labels, flip.answers, strict=True))}
            | {"texts": dict(zip(labels, flip.texts, strict=True))}
            for flip in flips(comparison)[:limit]
        ],
    }


def pair_as_json(pair: Pair) -> dict[str, Any]:
    """A pair with its numbers; `run` is compared with `against`."""
    mean, stderr, low, high, n = pair.difference
    return {
        "run": pair.label,
        "against": pair.against,
        "difference": mean,
        "stderr": number(stderr),
        "ci95": None if n < 2 else [low, high],
        "mde": number(pair.difference.mde),
        "n": n,
        "won": pair.only_this,
        "lost": pair.only_other,
        "p": pair.p,
        "p_holm": pair.p_holm,
    }
