"""Exports the score of a whole run as an entry of `.eval_results/`, which the hub shows on a model's page.

A page shows one figure per data set, so that the notes say how it was sampled. The file is written and never pushed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from evals.types import UserError
from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.inputs.problems import GSM8K_REVISION
from orchestrator.settings.config import DEFAULT_DATA
from orchestrator.wording import short

if TYPE_CHECKING:
    from orchestrator.export.exported_run import Exported


def files(exported: Exported, out: Path | None, usual: Path) -> dict[Path, str]:
    """The one file: `out`, or one named after the run in `usual`/.eval_results. Raises UserError for a run that is not
    of all of GSM8K, or of which no model is the author."""
    run, summary = exported.run, exported.summary
    if not exported.is_gsm8k or exported.replayed:
        what = "its texts are replayed" if exported.replayed else f"it is of {run.data}"
        raise UserError(f"The hub shows scores of models on GSM8K, and {run.directory} is none: {what}.")
    if summary.num_owed or run.num_problems != run.data_rows:
        raise UserError(
            f"{run.directory} has {summary.num_records:,} answers to {run.num_problems:,} of {run.data_rows:,} "
            "problems, and the hub's scores are of whole data sets; finish the run, or run it without a limit."
        )
    score, given = summary.accuracy[PRIMARY_METRIC], run.sampler.items()
    settings = ", ".join(f"{name} {value}" for name, value in given if name != "kind" and value is not None)
    notes = (
        f"Sampled by {run.method} ({settings}), not by plain decoding; mean of {run.num_samples} answers per problem, "
        f"{score.words} %; {run.num_shots} solved examples, up to {run.max_new_tokens} tokens, seed {run.seed}; "
        f"powersample {short(run.git_commit)}, fingerprint {short(run.fingerprint)}."
    )
    entry = {
        "dataset": {"id": DEFAULT_DATA, "task_id": "gsm8k", "revision": GSM8K_REVISION},
        "value": round(100 * (score.mean or 0.0), 2),
        "date": datetime.fromtimestamp(exported.ended, UTC).date().isoformat(),
        "notes": notes,
    }
    name = f"gsm8k-powersample-{short(run.fingerprint)}.yaml"
    return {out or usual / ".eval_results" / name: yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)}
