"""Statistics against values computed by hand and by brute force."""

from collections import Counter
from itertools import combinations, product
from math import comb, inf, isnan, nan, sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

import evals.statistics as statistics
from evals.statistics import (
    Difference,
    holm,
    maj_at_k,
    mcnemar_exact,
    mean_and_stderr,
    paired_difference,
    pass_at_k,
    sign_flip,
    variance_split,
    wilson,
)


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


def test_error_of_clusters() -> None:
    """Samples of one question are a cluster: the error is that of question means."""
    samples = [float(bit) for bit in "111111010100000010111111"]
    names = [f"question {i // 4}" for i in range(24)]
    assert mean_and_stderr(samples, names) == pytest.approx(mean_and_stderr(A))
    assert mean_and_stderr(samples, names[::-1]) == pytest.approx(mean_and_stderr(A)), "whatever their names"
    assert mean_and_stderr(samples)[1] < 0.102, "twenty-four samples are not that many questions"
    assert mean_and_stderr(A, [str(i) for i in range(6)]) == pytest.approx(mean_and_stderr(A))
    assert isnan(mean_and_stderr(A, ["one"] * 6)[1])
    difference = paired_difference([1, 1, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0], ["a", "a", "b", "b", "c", "c"])
    assert difference.stderr == pytest.approx(sqrt(3 / 2 * ((4 / 3) ** 2 + 2 * (2 / 3) ** 2)) / 6)
    assert difference.high - difference.mean == pytest.approx(t(2).ppf(0.975) * difference.stderr)


def test_small_samples_have_no_error() -> None:
    assert all(map(isnan, mean_and_stderr([])))
    mean, stderr = mean_and_stderr([1.0])
    assert mean == 1
    assert isnan(stderr)


def test_wilson_is_the_closed_form_and_touches_its_ends_exactly() -> None:
    z = NormalDist().inv_cdf(0.975)
    for n in (1, 2, 7, 64, 1319):
        for k in sorted({0, 1, n // 3, n - 1, n}):
            centre, half = k + z**2 / 2, z * sqrt(k * (n - k) / n + z**2 / 4)
            assert wilson(k, n) == pytest.approx(((centre - half) / (n + z**2), (centre + half) / (n + z**2)), abs=1e-9)
        assert (wilson(0, n)[0], wilson(n, n)[1]) == (0.0, 1.0)
    for successes, n in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="must"):
            wilson(successes, n)


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


def test_mcnemar_is_exact() -> None:
    """Against integers, to 1e-12 and far into the tail, where other ways to sum two tails give 0."""
    for b, c in ((0, 1), (0, 9), (3, 4), (5, 5), (200, 260), (900, 1000), (38, 1042)):
        exact = min(1.0, 2 * sum(comb(b + c, k) for k in range(b + 1)) / 2 ** (b + c))
        assert mcnemar_exact(b, c) == mcnemar_exact(c, b) == pytest.approx(exact, rel=1e-12)
    assert mcnemar_exact(0, 0) == 1


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_equal_differences_are_not_certainty() -> None:
    n = 200
    other = wilson(0, n)[1]
    assert paired_difference([0.0] * n, [0.0] * n)[:4] == pytest.approx((0, 0, -other, other))
    assert paired_difference([1.0] * n, [0.0] * n)[:4] == pytest.approx((1, 0, 1 - 2 * other, 1))
    assert all(map(isnan, paired_difference([1.0], [0.0])[1:4]))


def test_sign_flip() -> None:
    assert sign_flip(np.subtract(A, B)) == pytest.approx(4 / 64)
    assert sign_flip([0.0] * 50) == sign_flip([]) == sign_flip([0.5]) == 1
    rng = np.random.default_rng(5)
    for n, k in product((2, 5, 13), (1, 3, 16)):
        sizes = rng.integers(-k, k + 1, size=n) / k  # thirds: equal means that rounding makes unequal are ties
        sums = np.array([np.dot(signs, sizes) for signs in product((1, -1), repeat=n)])
        exact = np.mean(np.abs(sums) >= abs(sizes.sum()) - 1e-9)
        assert sign_flip(sizes) == pytest.approx(exact, abs=1e-12)


def test_sign_flip_by_random_signs_is_near_mcnemar() -> None:
    won, lost = 30, 14
    p = sign_flip([1.0] * won + [-1.0] * lost + [0.0] * 1000)
    exact = mcnemar_exact(won, lost)
    assert p == pytest.approx(exact, abs=4 * sqrt(exact / statistics.NUM_FLIPS))
    assert p == sign_flip([0.0] * 7 + [-1.0] * lost + [1.0] * won), "another order of the same questions"
    assert sign_flip([1.0] * 200) == 1 / (statistics.NUM_FLIPS + 1)


def test_the_minimum_detectable_effect_is_found_by_four_of_five_runs() -> None:
    """Discordant shares and MDE in points at n = 1319."""
    for discordant, points in ((0.05, 1.7), (0.1, 2.4), (0.2, 3.5), (0.3, 4.2)):
        half = round(1319 * discordant / 2)
        difference = paired_difference([1] * half + [0] * (1319 - half), [0] * (1319 - half) + [1] * half)
        assert 100 * difference.mde == pytest.approx(points, abs=0.05)
    normal = NormalDist()
    z = normal.inv_cdf(0.975)
    assert normal.cdf(Difference(0, 1, -z, z, 9).mde - z) == pytest.approx(0.8)
    few = paired_difference([1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 1, 0], ["a", "a", "b", "b", "c", "c"])
    assert few.mde == pytest.approx((4.303 + 0.842) * few.stderr, rel=1e-3), "Student's t of two degrees of freedom"
    assert isnan(paired_difference([1.0] * 5, [0.0] * 5).mde)
    assert isnan(Difference(0.5, nan, nan, nan, 1).mde)


def test_variance_is_split_into_questions_and_reruns() -> None:
    split = variance_split([4, 3, 1, 0, 3, 4], [4] * 6)
    assert split is not None
    assert (split.reruns, split.questions, split.stderr_reruns) == pytest.approx((0.125, 0.1375, 0.072169), abs=1e-6)
    assert split.stderr(4) == pytest.approx(mean_and_stderr(A)[1]), "as many samples as there are"
    assert split.stderr(inf) == pytest.approx(sqrt(0.1375 / 6))
    only_noise = variance_split([2, 2, 2, 2], [4] * 4)
    assert only_noise is not None
    assert (only_noise.questions, only_noise.reruns) == (0, pytest.approx(1 / 3)), "a negative estimate is 0"
    assert variance_split([1, 0, 1], [1, 1, 2]) is None
    more = variance_split([4, 3, 1, 0, 3, 4, 1], [4, 4, 4, 4, 4, 4, 1])
    assert more == split, "one sample alone tells nothing of the draws"


def test_pass_at_k_of_many_samples() -> None:
    many = pass_at_k(7, 65_536)
    for k in (1, 2, 300, 20_000, 65_536):
        assert many[k - 1] == pytest.approx(1 - comb(65_529, k) / comb(65_536, k), rel=1e-9)


def test_counts_that_cannot_be_are_refused() -> None:
    for right in (5, -1):
        with pytest.raises(ValueError, match=f"{right} right of 4"):
            pass_at_k(right, 4)
    with pytest.raises(ValueError, match="5 drawn of 4"):
        maj_at_k(1, [1, 1], 1, 5)


def brute_force(answers: str, k: int) -> tuple[float, float]:
    """pass@k and maj@k over all k-subsets; `r` is the right answer, a space none."""
    passes, votes = [], []
    for subset in combinations(answers, k):
        passes.append("r" in subset)
        count = Counter(answer for answer in subset if answer != " ")
        best = [answer for answer in count if count[answer] == max(count.values())]
        votes.append(1 / len(best) if "r" in best else 0)
    return float(np.mean(passes)), float(np.mean(votes))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text("rabc ", min_size=1, max_size=9), st.data())
def test_pass_and_maj_are_the_means_over_all_subsets(answers: str, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    right, silent = answers.count("r"), answers.count(" ")
    wrong = [answers.count(name) for name in "abc"]
    found = pass_at_k(right, len(answers))[k - 1], maj_at_k(right, wrong, silent, k)
    assert found == pytest.approx(brute_force(answers, k))


def test_maj_at_k_of_many_samples_is_estimated_by_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = (20, [15, 8, 5, 3, 3, 2, 2, 1, 1], 4)
    exact = maj_at_k(*counts, 16)
    monkeypatch.setattr(statistics, "MAX_EXACT_VOTES", 16)
    found = maj_at_k(*counts, 16, key=(7, 16))
    assert found == pytest.approx(exact, abs=4 * 0.5 / sqrt(statistics.NUM_BALLOTS))
    assert found == maj_at_k(*counts, 16, key=(7, 16))
    assert found != maj_at_k(*counts, 16, key=(8, 16))
    assert maj_at_k(65_536, [], 0, 4096, key=(1, 2)) == 1
    assert maj_at_k(0, [], 100, 8) == 0
