"""Statistics of scores: standard errors, intervals and paired tests of accuracies, pass@k and maj@k.

Means are over questions; with several samples per question the value of a question is the mean of its samples. Normal
approximations and clusters follow Miller, Adding Error Bars to Evals (arXiv 2411.00640): where `groups` [n] names the
template that each question was made from, only templates are independent. scipy.stats takes most of a second to import
and is imported where it is used, in reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb, nan, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95, Z80 = 1.959963984540054, 0.841621233572914
"""Quantiles of the normal law: 97.5 %, and the 80 % that `Difference.mde` is for."""
NUM_FLIPS, FLIPS_AT_ONCE = 9_999, 1 << 20
"""Random sign patterns of a permutation test (where no more than these exist, all are tried); signs held at once."""
MAX_EXACT_VOTES, NUM_BALLOTS = 64, 2_000
"""Samples up to which the expected majority is summed exactly, at cubic cost; random subsets above."""


class Difference(NamedTuple):
    """Mean of paired differences A - B with its standard error and 95 % interval; NaN where there are too few pairs."""

    mean: float
    stderr: float
    low: float
    high: float
    n: int

    @property
    def mde(self) -> float:
        """Minimum detectable effect: the true difference that a two-sided test at 5 % finds in 80 of 100 such runs.

        Half the interval and z_0.8 standard errors, 2.802 of them where there are no groups; NaN where there is none.
        """
        return self.high - self.mean + Z80 * self.stderr if self.stderr > 0 else nan


class Split(NamedTuple):
    """Variance of one answer's score over n questions, split by its sources: the question and the draw."""

    questions: float
    """Var(x_i) of the true success rates; an estimate below 0 is 0."""
    reruns: float
    """Mean of x_i (1 - x_i), the variance by the draw."""
    stderr_reruns: float
    """Standard error over new answers to the same questions: far below that over new questions."""
    n: int

    def stderr(self, num_samples: float) -> float:
        """Standard error over new questions that `num_samples` answers to each would have; inf for its limit."""
        return sqrt((self.questions + self.reruns / num_samples) / self.n)


def mean_and_stderr(question_means: ArrayLike, groups: Sequence[str] = ()) -> tuple[float, float]:
    """Mean of n values and its standard error sqrt(C / (C - 1) sum_c(sum_{i in c}(s_i - mean))^2) / n over C clusters.

    `question_means` [n], one value per question; without `groups` each is a cluster of its own, and for values 0 and 1
    the error is sqrt(p (1 - p) / (n - 1)). NaN where n or C is too small.
    """
    values = np.asarray(question_means, dtype=np.float64)
    if (n := len(values)) == 0:
        return nan, nan
    mean = float(values.mean())
    sums = cluster_sums(values - mean, groups)
    c = len(sums)
    return mean, sqrt(float(np.sum(sums**2)) * c / (c - 1)) / n if c > 1 else nan


def cluster_sums(values: NDArray[np.float64], groups: Sequence[str]) -> NDArray[np.float64]:
    """[C] sums of `values` [n] over the questions of each group; the values themselves without groups."""
    if not groups:
        return values
    return np.bincount(np.unique(groups, return_inverse=True)[1], weights=values).astype(np.float64, copy=False)


def quantile95(groups: Sequence[str]) -> float:
    """Half width of a 95 % interval in standard errors: the normal's, with C groups Student's t of C - 1 degrees."""
    if not groups:
        return Z95
    from scipy.special import stdtrit

    return float(stdtrit(len(set(groups)) - 1, 0.975))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927), to print for one sample per question.

    Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    from scipy.stats import binomtest

    low, high = binomtest(successes, n).proportion_ci(method="wilson")
    return float(low), float(high)


def paired_difference(a: ArrayLike, b: ArrayLike, groups: Sequence[str] = ()) -> Difference:
    """Difference A - B of two methods: `a` [n] and `b` [n] are their means on the same questions, in the same order.

    Its error is far smaller than that of two separate accuracies, because hard questions are hard for both. Where all
    n differences are equal their spread says nothing; the interval then allows for the share of other questions that
    Wilson's interval does at 0 of n, whatever their difference. Raises ValueError if the lengths differ.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if (n := len(a)) != len(b):
        raise ValueError(f"{n} against {len(b)} questions: a paired comparison needs the same ones")
    mean, stderr = mean_and_stderr(a - b, groups)
    if n > 1 and stderr == 0:
        other = wilson(0, len(set(groups)) or n)[1]
        return Difference(mean, stderr, (1 - other) * mean - other, (1 - other) * mean + other, n)
    half = quantile95(groups) * stderr
    return Difference(mean, stderr, mean - half, mean + half, n)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p of the exact McNemar test, from the numbers of questions that only A and only B got right.

    p = min(1, 2 P[Bin(only_a + only_b, 1/2) <= the smaller one]).
    """
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))


def sign_flip(differences: ArrayLike) -> float:
    """Paired permutation test, two-sided p: chance that random signs of `differences` [n] give a mean as far from 0.

    Over all patterns of signs if there are at most NUM_FLIPS, else (1 + hits) / (NUM_FLIPS + 1) over random ones
    from a fixed seed. For differences of -1, 0 and 1 it tests the same as `mcnemar_exact`.
    """
    from scipy.stats import monte_carlo_test, permutation_test

    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if (n := len(values)) < 2:
        return 1.0
    sizes: NDArray[np.float64] = np.sort(np.abs(values))  # sorted: p must not depend on the order of the questions
    rng = np.random.default_rng(0)

    def distance(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.abs(values.sum(axis)).round(9)  # so that ties are ties

    def flipped(size: tuple[int, ...]) -> NDArray[np.float64]:
        return sizes * (2.0 * rng.integers(0, 2, size, dtype=np.int8) - 1)

    how: dict[str, Any] = {"vectorized": True, "n_resamples": NUM_FLIPS, "alternative": "greater"}
    if 2**n <= NUM_FLIPS:
        return float(permutation_test((values,), distance, permutation_type="samples", **how).pvalue)
    return float(monte_carlo_test(values, flipped, distance, batch=max(1, FLIPS_AT_ONCE // n), **how).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for multiple tests, in the same order (Holm, Scandinavian J. of Statistics, 1979)."""
    p, order = np.asarray(p_values, dtype=np.float64), np.argsort(p_values, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, np.arange(len(p), 0, -1) * p[order]))
    return adjusted.tolist()


def variance_split(right: ArrayLike, num_samples: ArrayLike) -> Split | None:
    """Split the variance of question means [n] from `right` [n] of `num_samples` [n] independent answers to each.

    With s_i = right / K_i: the draw's variance is K_i / (K_i - 1) s_i (1 - s_i), and of Var(s_i) what the draws do not
    explain comes from the questions (Miller, section 3). Questions with one answer tell nothing of it and are left out;
    None where fewer than two others are left.
    """
    k = np.asarray(num_samples, dtype=np.float64)
    share, k = (np.asarray(right, dtype=np.float64) / k)[k > 1], k[k > 1]
    n = len(k)
    if n < 2:
        return None
    draws = share * (1 - share) / (k - 1)  # variance of each mean by its draws alone
    questions = max(0.0, float(share.var(ddof=1) - draws.mean()))
    return Split(questions, float((k * draws).mean()), sqrt(draws.sum()) / n, n)


def pass_at_k(right: int, n: int) -> NDArray[np.float64]:
    """pass@k [n] for k = 1 … n: chance that k of a question's n samples, drawn without replacement, hold a right one.

    1 - C(n - right, k) / C(n, k), the unbiased estimator of Chen et al. (arXiv 2107.03374), as a product. Raises
    ValueError unless 0 <= right <= n.
    """
    if not 0 <= right <= n:
        raise ValueError(f"{right} right of {n} samples")
    left = np.arange(n, 0, -1, dtype=np.float64)
    return 1 - np.cumprod(np.maximum(left - right, 0) / left, dtype=np.float64)


def maj_at_k(right: int, wrong: Sequence[int], silent: int, k: int, key: Sequence[int] = ()) -> float:
    """maj@k: expected score of a majority vote of k of a question's n samples, drawn without replacement.

    `right` samples have the right answer, `wrong` counts those of each other answer, `silent` have none and do not
    vote. A tie of t answers that holds the right one scores 1 / t. Exact up to MAX_EXACT_VOTES samples, else the mean
    over NUM_BALLOTS subsets whose randomness depends on `key` alone. Raises ValueError unless 1 <= k <= n.
    """
    n = right + sum(wrong) + silent
    if not 1 <= k <= n:
        raise ValueError(f"{k} drawn of {n} samples")
    if n <= MAX_EXACT_VOTES:
        return _exact_majority(right, tuple(sorted(wrong)), silent, k)
    draws = np.random.default_rng(list(key)).multivariate_hypergeometric([right, silent, *wrong], k, size=NUM_BALLOTS)
    mine, others = draws[:, :1], draws[:, 2:]
    ties = np.sum(others == mine, axis=1)
    return float(np.mean(np.where((mine[:, 0] > 0) & np.all(others <= mine, axis=1), 1 / (1 + ties), 0.0)))


@lru_cache(maxsize=1 << 16)  # many questions are answered alike, and the scores of one question even more so
def _exact_majority(right: int, wrong: tuple[int, ...], silent: int, k: int) -> float:
    """`maj_at_k` by counting subsets: those with j right ones and no other answer above j, by how many others tie."""
    total = 0.0
    for j in range(1, min(right, k) + 1):
        ways = {(0, 0): comb(right, j)}  # (samples drawn from the other answers, answers that tie) -> subsets
        for count in wrong:
            grown: dict[tuple[int, int], int] = {}
            for (drawn, ties), subsets in ways.items():
                for more in range(min(count, j, k - j - drawn) + 1):
                    place = drawn + more, ties + (more == j)
                    grown[place] = grown.get(place, 0) + subsets * comb(count, more)
            ways = grown
        total += sum(many * comb(silent, k - j - drawn) / (1 + ties) for (drawn, ties), many in ways.items())
    return total / comb(right + sum(wrong) + silent, k)
