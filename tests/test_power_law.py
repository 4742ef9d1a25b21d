"""The kernel leaves p^alpha invariant, by enumeration; the production chain has the law start * P^N, by simulation."""

from __future__ import annotations

from collections import Counter
from math import exp

import numpy as np
import pytest
from scipy.stats import chisquare
from toy import ToyEngine, ToyLM

from evals.samplers import metropolis
from evals.samplers.metropolis import State, cut_position, log_ratio, spliced
from evals.samplers.power import Power

TOYS = {
    "eos": ToyLM(1, vocabulary=3, horizon=4),
    "flat": ToyLM(2, vocabulary=4, horizon=3, spread=0.3),
    "peaked": ToyLM(3, vocabulary=3, horizon=5, spread=2.5),
    "stop": ToyLM(4, vocabulary=3, horizon=5, stop=(1, 2)),
}


def state_of(model: ToyLM, answer: tuple[int, ...], alpha: float) -> State:
    ended = model.ended(answer)
    assert ended is not None
    return State(answer, *model.statistics(answer, alpha), ended)


def transition_matrix(model: ToyLM, alpha: float, log_ratio=log_ratio) -> tuple[list, np.ndarray]:
    """P[i, j] of one move, from the kernel's own acceptance ratio and every cut and every ending."""
    answers = list(model.complete())
    index = {answer: i for i, answer in enumerate(answers)}
    matrix = np.zeros((len(answers), len(answers)))
    for answer in answers:
        x, i, length = state_of(model, answer, alpha), index[answer], len(answer)
        for cut in range(length):
            for proposal in model.complete(answer[:cut]):
                y = state_of(model, proposal, alpha)
                chance = exp(sum(y.log_q[cut:])) / length
                accept = min(1.0, exp(min(0.0, log_ratio(x, y, cut))))
                matrix[i, index[proposal]] += chance * accept
                matrix[i, i] += chance * (1 - accept)
    return answers, matrix


@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("toy", TOYS)
def test_kernel_leaves_p_alpha_invariant(toy: str, alpha: float) -> None:
    model = TOYS[toy]
    answers, matrix = transition_matrix(model, alpha)
    target = np.array([model.target(alpha)[x] for x in answers])
    assert {len(x) for x in answers} != {model.horizon}, "the toy must have answers of several lengths"
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(target @ matrix, target, atol=1e-12)
    flow = target[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-14)


@pytest.mark.parametrize("toy", ["eos", "stop"])
def test_kernel_converges_to_p_alpha_and_to_nothing_else(toy: str) -> None:
    model = TOYS[toy]
    answers, matrix = transition_matrix(model, 4.0)
    stationary = np.linalg.matrix_power(matrix, 1 << 14)[0]
    target = np.array([model.target(4.0)[x] for x in answers])
    assert np.abs(stationary - target).sum() / 2 < 1e-9


def without_length_factor(x: State, y: State, cut: int) -> float:
    return log_ratio(x, y, cut) - np.log(len(x.tokens) / len(y.tokens))


def inverted_length_factor(x: State, y: State, cut: int) -> float:
    return log_ratio(x, y, cut) - 2 * np.log(len(x.tokens) / len(y.tokens))


def state_sum_cut_at_the_end_of_the_draft(x: State, y: State, cut: int) -> float:
    return log_ratio(x, y, cut) + sum(x.log_z[cut + 1 :]) - sum(x.log_z[cut + 1 : len(y.tokens)])


def wrong_sign_of_q(x: State, y: State, cut: int) -> float:
    return log_ratio(x, y, cut) + 2 * (sum(y.log_q[cut:]) - sum(x.log_q[cut:]))


@pytest.mark.parametrize(
    "wrong",
    [without_length_factor, inverted_length_factor, state_sum_cut_at_the_end_of_the_draft, wrong_sign_of_q],
)
def test_wrong_kernels_are_seen(wrong) -> None:
    drift = []
    for model in TOYS.values():
        answers, matrix = transition_matrix(model, 2.0, wrong)
        target = np.array([model.target(2.0)[x] for x in answers])
        drift.append(np.abs(target @ matrix - target).sum() / 2)
    assert max(drift) > 1e-4  # the right kernel's is 1e-12


def test_shared_prefix_gives_the_identity_of_densities() -> None:
    """alpha log p = log q + log Z, token by token (Rényi identity)."""
    model = TOYS["peaked"]
    for answer in model.complete():
        log_q, log_z = model.statistics(answer, 4.0)
        np.testing.assert_allclose(4.0 * model.statistics(answer, 1.0)[0], log_q + log_z, atol=1e-12)


def law_of_chain(model: ToyLM, alpha: float, num_moves: int, chains: int) -> Counter:
    sampler = Power(alpha, num_moves)
    engine = ToyEngine(model, seed=7)
    return Counter(engine.run(sampler.chain(model.prompt(), 7, problem_id, 0)).tokens for problem_id in range(chains))


def p_value(model: ToyLM, alpha: float, num_moves: int, chains: int) -> float:
    """Chi-square of independent chains against start * P^N, cells with fewer than five expected pooled."""
    answers, matrix = transition_matrix(model, alpha)
    start = np.array([exp(sum(model.statistics(x, alpha)[0])) for x in answers])
    expected = chains * (start @ np.linalg.matrix_power(matrix, num_moves))
    seen = law_of_chain(model, alpha, num_moves, chains)
    observed = np.array([seen[x] for x in answers], dtype=float)
    large = expected >= 5
    pooled = [np.append(v[large], v[~large].sum()) for v in (observed, expected)]
    if pooled[1][-1] == 0:
        pooled = [v[:-1] for v in pooled]
    return float(chisquare(*pooled).pvalue)


@pytest.mark.parametrize(("toy", "num_moves"), [("eos", 0), ("eos", 3), ("stop", 2)])
def test_production_chain_has_the_exact_law(toy: str, num_moves: int) -> None:
    assert p_value(TOYS[toy], 2.0, num_moves, chains=2_000) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("toy", ["eos", "stop"])
@pytest.mark.parametrize("num_moves", [0, 1, 3, 10, 30])
def test_production_chain_has_the_exact_law_20000_chains(toy: str, num_moves: int) -> None:
    assert p_value(TOYS[toy], 2.0, num_moves, chains=20_000) > 1e-4


@pytest.mark.slow
def test_a_chain_without_the_length_factor_fails_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.samplers.power.log_ratio", without_length_factor)
    assert p_value(TOYS["eos"], 2.0, 30, chains=20_000) < 1e-6


def test_cuts_are_uniform_over_the_tokens() -> None:
    assert Counter(cut_position(4, u / 64) for u in range(64)) == {0: 16, 1: 16, 2: 16, 3: 16}
    assert cut_position(7, np.nextafter(1, 0)) == 6


def test_alpha_one_accepts_every_draft_of_equal_length_and_is_plain_sampling() -> None:
    model = TOYS["eos"]
    assert p_value(model, 1.0, 0, chains=2_000) > 1e-3
    x, y = (state_of(model, a, 1.0) for a in [(1, 2, 0), (1, 1, 0)])
    assert log_ratio(x, y, 1) == pytest.approx(0, abs=1e-12)


def test_chain_settles_every_draft_and_restores_without_prefill() -> None:
    model = TOYS["peaked"]
    engine = ToyEngine(model, seed=3)
    sample = engine.run(Power(4.0, 40).chain(model.prompt(), 3, 11, 2))
    assert all(request.parent is not None for request in engine.requests[1:])
    assert [request.key for request in engine.requests] == [(11, 2, move) for move in range(41)]
    info = sample.chain
    assert info["moves"] == 40
    assert 0 < info["accepted"] + info["null"] <= 40
    assert info["prefilled"] == 0
    assert info["generated"] == engine.generated
    np.testing.assert_allclose(sample.log_q, model.statistics(sample.tokens, 4.0)[0], atol=1e-12)
    np.testing.assert_allclose(sample.log_z, model.statistics(sample.tokens, 4.0)[1], atol=1e-12)


def test_move_zero_is_the_low_temperature_answer() -> None:
    from evals.samplers.single import Single

    model = TOYS["eos"]
    for problem_id in range(50):
        low = ToyEngine(model, 5).run(Single(4.0).chain(model.prompt(), 5, problem_id, 0))
        power = ToyEngine(model, 5).run(Power(4.0, 0).chain(model.prompt(), 5, problem_id, 0))
        assert low.tokens == power.tokens


def test_splice_keeps_the_statistics_of_the_shared_prefix() -> None:
    x = state_of(TOYS["eos"], (1, 2, 0), 4.0)
    y = spliced(x, 1, (0,), np.array([-0.5]), np.array([-0.25]), "eos")
    assert y.tokens == (1, 0)
    assert y.log_q.tolist() == [x.log_q[0], -0.5]
    assert y.log_z.tolist() == [x.log_z[0], -0.25]


def test_accept_uses_one_minus_u() -> None:
    assert metropolis.accepts(0.0, 0.0)
    assert not metropolis.accepts(-1.0, 0.0)
    assert metropolis.accepts(-1.0, 0.9)
