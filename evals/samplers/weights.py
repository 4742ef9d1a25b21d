"""Weighted candidates: normalised weights, their effective number, draws by weight. Knows no answer and no chain.

Weights come as logarithms in nats, of which only differences matter unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]


def normalised(log_w: Sequence[float]) -> Weights:
    """[K] weights that sum to 1. The largest is subtracted before exponentiating, so that none overflows.

    At least one weight must be positive; where every token was drawn with positive probability all are.
    """
    logs = np.asarray(log_w, dtype=np.float64)
    assert np.isfinite(logs.max()), "a candidate was drawn, so log Z is finite at each of its positions"
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def log_mean(log_w: Sequence[float]) -> float:
    """log of the mean weight, in nats."""
    return float(np.logaddexp.reduce(np.asarray(log_w, dtype=np.float64))) - float(np.log(len(log_w)))


def effective_size(weights: Weights) -> float:
    """(sum w)^2 / sum w^2: between 1, one candidate carries all the weight, and K, all carry the same."""
    return float(weights.sum() ** 2 / np.sum(weights**2))


def pick(weights: Weights, u: float) -> int:
    """The index whose share of [0, 1) contains the uniform `u`; never one of weight 0."""
    return int(shares(weights, np.array([u]))[0])


def systematic(weights: Weights, u: float) -> list[int]:
    """Ancestors [K], in order: index k gets K w_k children, rounded up or down, without bias (systematic resampling).

    One uniform `u` in [0, 1) places K equally spaced points. Source: Carpenter, Clifford, Fearnhead, Improved Particle
    Filter for Nonlinear Problems (1999).
    """
    count = len(weights)
    return shares(weights, (np.arange(count) + u) / count).tolist()


def shares(weights: Weights, points: Weights) -> NDArray[np.intp]:
    """Inverse CDF of normalised weights at points in [0, 1)."""
    cumulative = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1])
    return np.minimum(np.searchsorted(cumulative, points * cumulative[-1], side="right"), last)
