"""The draw against its definition in float64: law, statistics, exclusion, truncation, edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from evals.engine.token_sampling import draw

LAST = 1 - 2.0**-53
INF = math.inf


def rows(count: int, value: float) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def random_logits(count: int, vocabulary: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed))


def reference(logits: torch.Tensor, alpha: float) -> tuple[np.ndarray, float]:
    """log q and log Z of one row, from the definition."""
    log_p = stats_log_softmax(logits.double().numpy())
    log_z = np.logaddexp.reduce(alpha * log_p)
    return alpha * log_p - log_z, float(log_z)


def stats_log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0, 50.0])
def test_statistics_equal_the_definition(alpha: float) -> None:
    logits = random_logits(16, 500)
    uniform = torch.linspace(0, 0.999, 16, dtype=torch.float64)
    drawn = draw(logits, rows(16, alpha), uniform)
    for row in range(16):
        log_q, log_z = reference(logits[row], alpha)
        token = int(drawn.token[row])
        cumulative = np.cumsum(np.exp(log_q))
        assert token == np.searchsorted(cumulative, float(uniform[row]) * cumulative[-1], side="right")
        assert float(drawn.log_q[row]) == pytest.approx(log_q[token], abs=1e-11)
        assert float(drawn.log_z[row]) == pytest.approx(min(log_z, 0) if alpha >= 1 else log_z, abs=1e-11)


def test_alpha_is_per_row_and_a_row_does_not_feel_its_company() -> None:
    logits = random_logits(5, 300)
    alpha = torch.tensor([1.0, 4.0, INF, 0.7, 2.0], dtype=torch.float64)
    uniform = rows(5, 0.37)
    exclude = torch.tensor([-1, 3, -1, -1, 7])
    together = draw(logits, alpha, uniform, exclude)
    for row in range(5):
        one = slice(row, row + 1)
        alone = draw(logits[one], alpha[one], uniform[one], exclude[one] if exclude[row] >= 0 else None)
        assert [float(x[0]) for x in alone] == [float(x[row]) for x in together]


def test_alpha_one_has_log_z_zero_and_greedy_holds_log_p() -> None:
    logits = random_logits(8, 100)
    assert draw(logits, rows(8, 1.0), rows(8, 0.5)).log_z.eq(0).all()
    greedy = draw(logits, rows(8, INF), rows(8, 0.5))
    assert greedy.token.tolist() == logits.argmax(-1).tolist()
    assert greedy.log_q.eq(0).all()
    assert torch.allclose(greedy.log_z, logits.double().log_softmax(-1).amax(-1), atol=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 4.0])
def test_law_of_the_draw(alpha: float) -> None:
    logits = random_logits(1, 12, spread=0.6)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    token = draw(logits.expand(20_000, -1), rows(20_000, alpha), uniform).token
    expected = 20_000 * np.exp(reference(logits[0], alpha)[0])
    assert stats.chisquare(np.bincount(token.numpy(), minlength=12), expected).pvalue > 1e-3


def test_exclusion_restricts_the_draw_and_leaves_the_statistics() -> None:
    logits = random_logits(1, 12, spread=0.6)
    excluded = int(logits.argmax())
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = draw(logits.expand(20_000, -1), rows(20_000, 4.0), uniform, torch.full((20_000,), excluded))
    log_q, log_z = reference(logits[0], 4.0)
    law = np.exp(log_q)
    law[excluded] = 0
    counts = np.bincount(drawn.token.numpy(), minlength=12)
    assert counts[excluded] == 0
    others = law > 0
    assert stats.chisquare(counts[others], 20_000 * law[others] / law.sum()).pvalue > 1e-3
    assert np.allclose(drawn.log_q.numpy(), log_q[drawn.token.numpy()], atol=1e-12)
    assert np.allclose(drawn.log_z.numpy(), log_z, atol=1e-12)


@pytest.mark.parametrize("gap", [5.0, 14.0, 40.0, 400.0])
def test_exclusion_where_q_is_nearly_one(gap: float) -> None:
    """The rest keeps its own law however little mass it has; dividing by 1 - q would lose it."""
    logits = torch.tensor([[0.0, gap, 0.3, -0.4]])
    uniform = torch.linspace(0, LAST, 2001, dtype=torch.float64)
    drawn = draw(logits.expand(2001, -1), rows(2001, 4.0), uniform, torch.ones(2001, dtype=torch.long))
    shares = np.bincount(drawn.token.numpy(), minlength=4) / 2001
    rest = np.exp(4 * np.array([0.0, 0.3, -0.4]))
    assert np.allclose(shares, np.insert(rest / rest.sum(), 1, 0.0), atol=2e-3)
    assert torch.isfinite(drawn.log_q).all()


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, LAST])
def test_a_token_without_weight_is_never_drawn(uniform: float) -> None:
    logits = torch.full((4, 50), -INF)
    logits[0, 20] = 0.0
    logits[1, [0, 49]] = torch.tensor([1.0, -3000.0])
    logits[2, 10:30] = 2.0
    logits[3, [5, 6]] = torch.tensor([3.0, 1.0])
    drawn = draw(logits, rows(4, 4.0), rows(4, uniform), torch.tensor([-1, -1, 29, 6]))
    assert drawn.token[0] == 20
    assert drawn.token[1] == 0
    assert 10 <= drawn.token[2] < 29
    assert drawn.token[3] == 5
    assert torch.isfinite(drawn.log_q).all()
    assert torch.isfinite(drawn.log_z).all()


def test_a_row_that_cannot_be_drawn_says_so() -> None:
    logits = torch.zeros(4, 6)
    logits[0, 3] = torch.nan
    logits[1] = -INF
    logits[2, 1:] = -INF  # its only token is excluded
    drawn = draw(logits, rows(4, 4.0), rows(4, 0.5), torch.tensor([-1, -1, 0, -1]))
    assert drawn.log_q.isnan().tolist() == [True, True, True, False]


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15]])).expand(1000, -1)
    uniform = torch.linspace(0, LAST, 1000, dtype=torch.float64)
    log_p = logits[0].double().log_softmax(-1).numpy()

    def kept(top_k: int, top_p: float, alpha: float = 1.0) -> set[int]:
        drawn = draw(logits, rows(1000, alpha), uniform, top_k_B=torch.full((1000,), top_k), top_p_B=rows(1000, top_p))
        tokens = sorted(set(drawn.token.tolist()))
        log_z = np.logaddexp.reduce(alpha * log_p[tokens])  # sum of p^alpha over the kept tokens
        assert np.allclose(drawn.log_z.numpy(), log_z, atol=1e-9)
        assert np.allclose(drawn.log_q.numpy(), alpha * log_p[drawn.token.numpy()] - log_z, atol=1e-9)
        return set(tokens)

    assert kept(0, 1.0) == {0, 1, 2, 3, 4}
    assert kept(2, 1.0) == {1, 3}
    assert kept(0, 0.5) == {1, 3}
    assert kept(0, 0.69) == {1, 3}
    assert kept(0, 0.71) == {1, 3, 4}
    assert kept(0, 0.71, alpha=4.0) == {1}  # 0.74 of the tempered mass
    assert kept(2, 0.56) == {1}  # 4/7 of what top-k leaves
    assert kept(1, 0.9, alpha=3.0) == {1}


def test_exclusion_within_a_truncated_law() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15]], dtype=torch.float64)).float()
    arguments = (rows(1, 1.0), rows(1, LAST), torch.tensor([3]))
    drawn = draw(logits, *arguments, top_k_B=torch.tensor([3]), top_p_B=rows(1, 1.0))
    assert drawn.token.tolist() == [4]
    assert float(drawn.log_q) == pytest.approx(math.log(0.15 / 0.85), abs=1e-6)
    nothing = draw(logits, rows(1, 1.0), rows(1, 0.5), torch.tensor([1]), top_k_B=torch.tensor([1]))
    assert nothing.log_q.isnan().all()


def test_large_logits_do_not_overflow() -> None:
    logits = random_logits(4, 1000) + torch.tensor([[0.0], [1e4], [-1e4], [3e30]])
    drawn = draw(logits, rows(4, 1000.0), rows(4, 0.5))
    assert torch.isfinite(drawn.log_q).all()
    assert (drawn.log_z <= 0).all()
