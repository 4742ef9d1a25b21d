"""Intervals, tests and power over 10,000 simulated evaluations each: what theory promises holds for what is used."""

from __future__ import annotations

from functools import cache
from math import sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from evals.statistics import Z95, holm, mcnemar_exact, paired_difference, sign_flip, variance_split
from orchestrator.analysis.accuracy import estimate

NUM_RUNS = 10_000
exact = cache(mcnemar_exact)  # most runs have counts that others had
Rows = NDArray[np.float64]


def shares(rng: np.random.Generator, chances: Rows, num_samples: int) -> Rows:
    """Question means of independent answers; `chances` [runs, n]."""
    return rng.binomial(num_samples, chances) / num_samples


def difficulties(rng: np.random.Generator, a: float, n: int) -> Rows:
    """[NUM_RUNS, n] chances of a right answer, Beta(a, 1), whose mean is a / (a + 1)."""
    return rng.beta(a, 1, size=(NUM_RUNS, n))


@pytest.mark.parametrize(("num_samples", "n"), [(1, 400), (4, 400), (8, 300)])
def test_the_interval_of_an_accuracy_holds_the_truth_in_95_of_100_runs(num_samples: int, n: int) -> None:
    rng = np.random.default_rng(num_samples)
    rows = shares(rng, difficulties(rng, 4, n), num_samples)
    intervals = np.array([estimate(dict(enumerate(row.tolist())), num_samples == 1).ci95 for row in rows])
    assert 0.94 < np.mean((intervals[:, 0] <= 0.8) & (intervals[:, 1] >= 0.8)) < 0.96
    if num_samples > 1:
        mean = rows.mean(axis=1)
        pooled = Z95 * np.sqrt(mean * (1 - mean) / (n * num_samples))
        assert np.mean(np.abs(mean - 0.8) <= pooled) < 0.9, "samples of one question are no separate questions"


@pytest.mark.parametrize("num_samples", [1, 4])
def test_the_interval_of_a_paired_difference_holds_the_truth_in_95_of_100_runs(num_samples: int) -> None:
    rng = np.random.default_rng(10 + num_samples)
    chances, n = difficulties(rng, 1, 300), 300
    a, b = shares(rng, np.sqrt(chances), num_samples), shares(rng, chances, num_samples)
    pairs = [paired_difference(x, y) for x, y in zip(a, b, strict=True)]
    assert 0.94 < np.mean([pair.low <= 2 / 3 - 1 / 2 <= pair.high for pair in pairs]) < 0.96
    unpaired = Z95 * np.sqrt((a.var(axis=1, ddof=1) + b.var(axis=1, ddof=1)) / n)
    covered = np.abs((a - b).mean(axis=1) - 1 / 6) <= unpaired
    assert np.mean(covered) > 0.97, "two separate errors are too wide"


def test_the_interval_of_clusters_holds_the_truth_in_95_of_100_runs() -> None:
    """Twenty problems from each of fifteen templates, as alike as their template's difficulty makes them."""
    rng = np.random.default_rng(15)
    rows = rng.binomial(1, np.repeat(difficulties(rng, 1, 15), 20, axis=1)[:2_000])
    groups = {i: str(i // 20) for i in range(300)}
    for clustered, low, high in ((groups, 0.93, 0.97), (None, 0.3, 0.7)):
        found = np.array([estimate(dict(enumerate(row)), True, clustered).ci95 for row in rows.astype(float).tolist()])
        assert low < np.mean((found[:, 0] <= 0.5) & (found[:, 1] >= 0.5)) < high


def test_equal_methods_differ_by_mcnemar_in_at_most_5_of_100_runs() -> None:
    rng = np.random.default_rng(20)
    discordant = rng.binomial(500, 0.2, size=NUM_RUNS)
    won = rng.binomial(discordant, 0.5)
    wrong = np.mean([exact(b, d - b) <= 0.05 for b, d in zip(won.tolist(), discordant.tolist(), strict=True)])
    assert 0.03 < wrong < 0.05 + 2 * sqrt(0.05 * 0.95 / NUM_RUNS), "exact, hence a little below"


@pytest.mark.parametrize(("n", "num_runs"), [(8, NUM_RUNS), (20, 1_000)])
def test_equal_methods_differ_by_sign_flips_in_5_of_100_runs(n: int, num_runs: int) -> None:
    """All 2^8 patterns of signs, and random ones; differences of answers that count by weight, which have no ties."""
    rng = np.random.default_rng(n)
    differences = rng.uniform(-1, 1, size=(num_runs, n)) ** 3
    wrong = np.mean([sign_flip(row) <= 0.05 for row in differences])
    assert wrong == pytest.approx(0.05, abs=3 * sqrt(0.05 * 0.95 / num_runs))


def test_holm_keeps_all_of_several_tests_at_5_of_100_runs() -> None:
    p_values = np.random.default_rng(30).uniform(size=(NUM_RUNS, 5))
    wrong = np.mean([min(holm(row.tolist())) <= 0.05 for row in p_values])
    assert wrong == pytest.approx(1 - 0.99**5, abs=3 * sqrt(0.05 * 0.95 / NUM_RUNS))


def test_the_minimum_detectable_effect_is_detected_in_80_of_100_runs() -> None:
    """Runs whose true difference is the MDE that runs like them report."""
    n, discordant = 500, 0.2
    rng = np.random.default_rng(40)
    factor = (Z95 + 0.8416) ** 2 / n
    truth = sqrt(factor * discordant / (1 + factor))  # = 2.802 sqrt((discordant - truth^2) / n)
    chances = [(discordant + truth) / 2, (discordant - truth) / 2, 1 - discordant]
    counts = rng.multinomial(n, chances, size=NUM_RUNS)

    @cache
    def found(won: int, lost: int, same: int) -> tuple[bool, bool, float]:
        pair = paired_difference(np.repeat([1, 0, 0], [won, lost, same]), np.repeat([0, 1, 0], [won, lost, same]))
        return pair.low > 0, exact(won, lost) <= 0.05, pair.mde

    by_interval, by_test, reported = zip(*(found(*row) for row in counts.tolist()), strict=True)
    assert np.mean(reported) == pytest.approx(truth, rel=0.01)
    assert np.mean(by_interval) == pytest.approx(0.8, abs=0.02)
    assert np.mean(by_test) == pytest.approx(0.8, abs=0.03), "the exact test is a little weaker"


def test_the_variance_split_predicts_the_error_of_other_numbers_of_samples() -> None:
    """Uniform difficulty: Var(x) = 1/12 and E x (1 - x) = 1/6, of which four samples leave half and many a third."""
    rng, n = np.random.default_rng(50), 100
    chances = difficulties(rng, 1, n)
    right = rng.binomial(4, chances)
    splits = [split for row in right if (split := variance_split(row, [4] * n))]
    assert np.mean([split.questions for split in splits]) == pytest.approx(1 / 12, rel=0.01)
    assert np.mean([split.reruns for split in splits]) == pytest.approx(1 / 6, rel=0.01)
    for k in (1, 2, 16):
        seen = shares(rng, chances, k).mean(axis=1).std()
        assert np.mean([split.stderr(k) for split in splits]) == pytest.approx(seen, rel=0.03)
    again = np.array([shares(rng, chances[0], 4).mean() for _ in range(NUM_RUNS)])
    drawn = [variance_split(rng.binomial(4, chances[0]), [4] * n) for _ in range(500)]
    assert again.std() == pytest.approx(np.mean([split.stderr_reruns for split in drawn if split]), rel=0.03)
