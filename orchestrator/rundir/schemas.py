"""Which figures of the chains a summary has, and how it makes them of those of the records."""

from __future__ import annotations

TOTALS = (
    "moves", "null", "accepted", "rejected_early", "initial_tokens", "replayed_tokens", "naive_tokens",
    "discarded_tokens",
)  # fmt: skip
"""Fields of a record's chain that a summary adds up over all answers, under the same names."""
MEANS = {
    "mean_log_p_first": "log_p_first", "mean_log_p": "log_p", "mean_cut": "mean_cut",
    "mean_divergence": "mean_divergence", "mean_distinct": "distinct", "mean_drift": "drift_mean",
    "mean_candidates": "candidates", "mean_particles": "particles", "mean_resampled": "resampled",
    "mean_log_z_hat": "log_z_hat",
}  # fmt: skip
"""Averages over answers in a summary -> the fields of a record's chain that they are of."""
