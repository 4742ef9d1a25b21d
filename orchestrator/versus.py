"""`powersample compare RUN RUN …`: runs on their common problems, to read or as JSON. Writes no file.

What it says of the runs is what `powersample report` writes of them; the problems that flipped are added.
"""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from evals.types import UserError
from orchestrator.claim import runs_in
from orchestrator.compare import Comparison, Pair, compare, flips
from orchestrator.render_comparison import comparison_report, flipped_texts, flips_table
from orchestrator.report import read
from orchestrator.scores import number

NUM_FLIPS = 20


def versus(args: Namespace) -> int:
    """Print the comparison that `args` ask for; returns the exit code. Raises UserError for a user's mistake."""
    directories = [run for path in args.runs for run in runs_in(path) or [path]]
    if len(directories) < 2:
        raise UserError("compare needs at least two run directories.")
    comparison = compare([read(directory) for directory in directories], args.grader)
    if args.json:
        print(json.dumps(as_json(comparison, args.flips), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(comparison_report(comparison, None), end="")
        num = NUM_FLIPS if args.flips is None else args.flips
        print("\n" + flips_table(comparison, num), flipped_texts(comparison, num, args.texts), sep="\n", end="")
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
