"""The table of export formats, each with the function that makes its files."""

from __future__ import annotations

from orchestrator.export import chains, eval_results, every_eval_ever, inspect_ai, lm_eval
from orchestrator.export.parquet import parquet

FORMATS = {
    "lm-eval": lm_eval.files,
    "inspect": inspect_ai.files,
    "parquet": parquet,
    "chains": chains.files,
    "eval-results": eval_results.files,
    "every-eval-ever": every_eval_ever.files,
}
"""Format -> function from a run, `--out` and the usual place to its files: path -> content, the main file last."""
