"""The table of export formats."""

from __future__ import annotations

from orchestrator.export import inspect, lm_eval
from orchestrator.export.parquet import parquet

FORMATS = {"lm-eval": lm_eval.files, "inspect": inspect.files, "parquet": parquet}
"""Format -> the files of a run below a place: path -> content, the one that the tool looks for last."""
