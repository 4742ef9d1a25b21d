"""Errors, intervals and paired tests of accuracies: pure functions of numbers. Knows no record and no run.

Means are over questions; with several samples per question the value of a question is the mean of its samples. Normal
approximations follow Miller, Adding Error Bars to Evals (arXiv 2411.00640).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal law."""


class Difference(NamedTuple):
    """Mean of paired differences A - B with its standard error and 95 % interval; NaN where there are too few pairs."""

    mean: float
    stderr: float
    low: float
    high: float
    n: int


def mean_and_stderr(question_means: ArrayLike) -> tuple[float, float]:
    """Mean of n values and its standard error sqrt(sum((s - mean)^2) / (n (n - 1))); NaN where n is too small for them.

    `question_means` [n], one value per question. For values 0 and 1 the error is sqrt(p (1 - p) / (n - 1)).
    """
    values = np.asarray(question_means, dtype=np.float64)
    n = len(values)
    if n == 0:
        return nan, nan
    mean = float(values.mean())
    return mean, sqrt(float(np.sum((values - mean) ** 2)) / (n * (n - 1))) if n > 1 else nan


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927): what to print for one sample per question. (0, 1) for n = 0.

    Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # at 0 and n the formula gives 0 and 1 exactly, up to rounding
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """A - B on the same questions: `a` [n] and `b` [n] hold the question means of two methods, in the same order.

    Its error is far smaller than that of two separate accuracies, because hard questions are hard for both. Raises
    ValueError if the lengths differ.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} against {len(b)} questions: a paired comparison needs the same ones")
    mean, stderr = mean_and_stderr(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))
    return Difference(mean, stderr, mean - Z95 * stderr, mean + Z95 * stderr, len(a))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p of the exact McNemar test: could the questions that only A or only B got right be a fair coin's?

    p = min(1, 2 P[Bin(only_a + only_b, 1/2) <= the smaller one]); 1 without such questions. Exact in integers.
    """
    n = only_a + only_b
    tail = sum(comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for how many there are, in the same order (Holm, Scandinavian J. of Statistics, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
