"""Statistics against values computed by hand and by scipy."""

from math import isnan, sqrt

import numpy as np
import pytest
from scipy.stats import binomtest

from evals.statistics import mcnemar_exact, mean_and_stderr, paired_difference, wilson


def question_means(rows: str) -> list[float]:
    return [row.count("1") / len(row) for row in rows.split()]


A = question_means("1111 1101 0100 0000 1011 1111")
B = question_means("1101 1001 0000 0000 1001 1110")


def test_error_of_question_means() -> None:
    assert mean_and_stderr(A) == pytest.approx((0.625, 0.167705), abs=1e-6)
    right = [1.0] * 30 + [0.0] * 70
    assert mean_and_stderr(right) == pytest.approx((0.3, sqrt(0.3 * 0.7 / 99)))
    for p, points in ((0.5, 1.38), (0.7, 1.26), (0.85, 0.98), (0.95, 0.60)):
        k = round(1319 * p)
        assert 100 * mean_and_stderr([1] * k + [0] * (1319 - k))[1] == pytest.approx(points, abs=0.005)


def test_small_samples_have_no_error() -> None:
    assert all(map(isnan, mean_and_stderr([])))
    mean, stderr = mean_and_stderr([1.0])
    assert mean == 1
    assert isnan(stderr)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(1055, 1319, 0.7774, 0.8206), (1187, 1319, 0.8825, 0.9150), (24, 30, 0.6269, 0.9049), (30, 30, 0.8865, 1.0)],
)
def test_wilson_check_values(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_equals_scipy() -> None:
    for n in (1, 2, 7, 64, 1319):
        for k in sorted({0, 1, n // 3, n - 1, n}):
            interval = binomtest(k, n).proportion_ci(method="wilson")
            assert wilson(k, n) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert wilson(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_paired_difference() -> None:
    difference = paired_difference(A, B)
    assert difference.mean == pytest.approx(0.208333, abs=1e-6)
    assert difference.stderr == pytest.approx(0.041667, abs=1e-6)
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * 0.041667, abs=1e-4)
    assert difference.n == 6
    (_, se_a), (_, se_b) = mean_and_stderr(A), mean_and_stderr(B)
    rho = np.corrcoef(A, B)[0, 1]
    assert difference.stderr == pytest.approx(sqrt(se_a**2 + se_b**2 - 2 * rho * se_a * se_b))
    assert sqrt(se_a**2 + se_b**2) == pytest.approx(0.218104, abs=1e-6)
    with pytest.raises(ValueError, match="the same ones"):
        paired_difference(A, B[:5])


def test_paired_difference_of_zeros_and_ones_is_mcnemars_interval() -> None:
    b, c, n = 30, 14, 1319
    difference = paired_difference([1] * b + [0] * (n - b), [0] * b + [1] * c + [0] * (n - b - c))
    assert difference[:4] == pytest.approx((0.01213, 0.00502, 0.00230, 0.02197), abs=2e-5)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(30, 14, 0.022629), (36, 32, 0.716300), (47, 25, 0.012775), (10, 2, 0.038574), (5, 5, 1), (0, 0, 1)],
)
def test_mcnemar_check_values(b: int, c: int, p: float) -> None:
    assert mcnemar_exact(b, c) == pytest.approx(p, abs=1e-6)
    assert mcnemar_exact(c, b) == mcnemar_exact(b, c)


def test_mcnemar_equals_scipy() -> None:
    for b, c in ((0, 1), (0, 9), (3, 4), (200, 260), (900, 1000)):
        assert mcnemar_exact(b, c) == pytest.approx(binomtest(min(b, c), b + c).pvalue, rel=1e-9)


@pytest.mark.parametrize("n", [1, 7, 64, 1319])
def test_wilson_touches_its_ends_exactly(n: int) -> None:
    assert wilson(0, n)[0] == 0.0
    assert wilson(n, n)[1] == 1.0
