"""Every exact kernel leaves p^alpha invariant, by enumeration; and gives up no proposal that it would have accepted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import exp, fsum, log, log1p

import numpy as np
import pytest

from evals.rng import RandomKey
from evals.samplers.base import State, pick
from evals.samplers.metropolis import (
    EVERYWHERE,
    SLACK,
    Kernel,
    Move,
    acceptance_probability,
    certain_divergence,
    first_divergence,
    less_null,
    watch,
)
from evals.samplers.paper import PaperKernel
from evals.samplers.power import Power
from support.figures import figures
from support.law import KERNELS, TOYS, decisions, divergence, endings, state_of, target_of, transition_matrix
from support.toy import ToyEngine, ToyLM


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("toy", TOYS)
def test_kernel_leaves_p_alpha_invariant(toy: str, alpha: float, kernel: str) -> None:
    model = TOYS[toy]
    answers, matrix = transition_matrix(model, alpha, KERNELS[kernel])
    target = target_of(model, alpha, answers)
    assert {len(x) for x in answers} != {model.horizon}, "the toy must have answers of several lengths"
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(target @ matrix, target, atol=1e-12)
    flow = target[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-14)


def test_the_last_stage_is_the_whole_kernel() -> None:
    """So that the matrices above are those of the last stage; the stages before it are exact for their own horizons."""
    for effective in (None, 3):
        sampler = Power(4.0, blocks=4, num_effective_moves=effective)
        assert sampler.horizons(6) == [2, 3, 5, 6]
        assert sampler.kernel(6) == replace(sampler, blocks=1).kernel(6)
    assert Power(4.0, 5, blocks=9).horizons(3)[-1] == 3
    for horizon in (1, 2, 3):
        stage = TOYS["stop"].at(horizon)
        answers, matrix = transition_matrix(stage, 4.0, sampler.kernel(horizon))
        target = target_of(stage, 4.0, answers)
        np.testing.assert_allclose(target @ matrix, target, atol=1e-12)


@pytest.mark.parametrize("kernel", ["uniform", "entropy", "nonnull"])
@pytest.mark.parametrize("toy", ["eos", "stop"])
def test_kernel_converges_to_p_alpha_and_to_nothing_else(toy: str, kernel: str) -> None:
    answers, matrix = transition_matrix(TOYS[toy], 4.0, KERNELS[kernel])
    stationary = np.linalg.matrix_power(matrix, 1 << 14)[0]
    assert np.abs(stationary - target_of(TOYS[toy], 4.0, answers)).sum() / 2 < 1e-9


@pytest.mark.parametrize("toy", ["eos", "peaked", "stop"])
def test_the_kernel_without_null_moves_moves_at_least_as_often_to_everywhere(toy: str) -> None:
    """Peskun's order: no off-diagonal entry of it is smaller than the plain kernel's."""
    plain, free = (transition_matrix(TOYS[toy], 4.0, KERNELS[name])[1] for name in ("uniform", "nonnull"))
    apart = ~np.eye(len(plain), dtype=bool)
    assert np.all(free[apart] >= plain[apart] - 1e-15)
    assert free[apart].sum() > 1.01 * plain[apart].sum()


@pytest.mark.parametrize("toy", ["eos", "peaked", "stop", "forbidden"])
def test_replay_proposes_exactly_q(toy: str) -> None:
    """P(coins hold up to d) * P(coin fails) * (q without x_d) * (q after d) is q, for every proposal."""
    model = TOYS[toy]
    for answer in model.complete():
        q_x = np.exp(state_of(model, answer, 4.0).log_q)
        for cut in range(len(answer)):
            law = {answer: float(np.prod(q_x[cut:]))}
            for d in range(cut, len(answer)):
                for y, chance_y in endings(model, answer, d, 4.0, answer[d]) if q_x[d] < 1 else ():
                    law[y] = float(np.prod(q_x[cut:d])) * (1 - q_x[d]) * chance_y
            for y in model.complete(answer[:cut]):
                assert law.get(y, 0.0) == pytest.approx(exp(fsum(model.statistics(y, 4.0)[0][cut:])), abs=1e-14)


def test_coins_stop_at_the_first_that_fails() -> None:
    log_q = np.log([0.9, 0.5, 0.8, 1.0])
    assert first_divergence(log_q, 1, np.array([0.4, 0.9, 0.0])) == 2
    assert first_divergence(log_q, 1, np.array([0.5, 0.0, 0.0])) == 1
    assert first_divergence(log_q, 1, np.array([0.4, 0.7, 0.999])) == 4
    assert first_divergence(log_q, 3, np.array([np.nextafter(1, 0)])) == 4


def test_divergence_given_that_there_is_one_has_the_law_of_the_coins() -> None:
    q = np.array([0.9, 0.5, 1.0, 0.8, 1.0])
    grid = (np.arange(100_000) + 0.5) / 100_000
    for cut in range(4):
        held = np.concatenate([[1.0], np.cumprod(q[cut:])])
        expected = held[:-1] * (1 - q[cut:]) / (1 - held[-1])
        found = Counter(certain_divergence(np.log(q), cut, u) - cut for u in grid)
        shares = [found[d] / len(grid) for d in range(len(q) - cut)]
        np.testing.assert_allclose(shares, expected, atol=2e-5)
    tiny = np.array([-1e-20, 0.0, -1e-18])  # q of 1 - 1e-20 rounds to 1, and yet counts
    assert certain_divergence(tiny, 0, 0.5) == 2
    assert certain_divergence(tiny, 0, 0.0) == 0
    assert certain_divergence(np.array([0.0, -1e-18]), 0, 0.0) == 1


def test_cuts_are_drawn_by_weight() -> None:
    assert Counter(pick(np.ones(4), u / 64) for u in range(64)) == {0: 16, 1: 16, 2: 16, 3: 16}
    last = np.nextafter(1, 0)
    assert pick(np.ones(7), last) == 6
    assert [pick(np.array([0.0, 1.0, 3.0, 0.0]), u) for u in (0.0, 0.24, 0.26, last)] == [1, 1, 2, 2]
    for length in (1, 3, 49, 509):  # floor(L u), as for every run so far
        assert [pick(np.ones(length), u / 997) for u in range(997)] == [length * u // 997 for u in range(997)]


def test_normalisers_by_their_definitions() -> None:
    x = state_of(TOYS["stop"], (2, 1, 1, 2), 4.0)
    q = np.exp(x.log_q)
    carry = 0.0
    for value in q:
        carry = value * (1 + carry)
    assert KERNELS["uniform"].log_normaliser(x) == log(4)
    assert KERNELS["nonnull"].log_normaliser(x) == pytest.approx(log(4 - carry), abs=1e-12)
    assert KERNELS["entropy"].log_normaliser(x) == pytest.approx(log(fsum(-x.log_z) + 4 * EVERYWHERE), abs=1e-12)


def test_shared_prefix_gives_the_identity_of_densities() -> None:
    """alpha log p = log q + log Z, token by token (Rényi identity)."""
    model = TOYS["peaked"]
    for answer in model.complete():
        log_q, log_z = model.statistics(answer, 4.0)
        np.testing.assert_allclose(4.0 * model.statistics(answer, 1.0)[0], log_q + log_z, atol=1e-12)


TransitionKernel = Kernel | PaperKernel
ALL_KERNELS: dict[str, TransitionKernel] = {
    **KERNELS,
    "paper": PaperKernel(),
    "paper, no replay": PaperKernel(replay=False),
}


@pytest.mark.parametrize("kernel", ALL_KERNELS)
@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_early_rejection_changes_no_decision(kernel: str, count: int) -> None:
    changed, saved = decisions(ALL_KERNELS[kernel], count)
    assert changed == 0
    assert saved > count / 100


def least(kernel: str, x: State, y: State, start: int) -> float:
    """log of the least G that an answer can have that goes on after y, which shares the tokens before `start` with x,
    by its definition."""
    q, length = np.exp(y.log_q), len(y.tokens)
    shared = fsum(-x.log_z[: start + 1]) + (start + 1) * EVERYWHERE
    null = fsum(np.prod(q[m:]) for m in range(length))
    return log({"uniform": length + 1, "entropy": shared, "nonnull": length - null}[kernel])


@pytest.mark.parametrize("kernel", ["uniform", "entropy", "nonnull"])
def test_a_proposal_is_given_up_exactly_where_its_bound_says(kernel: str) -> None:
    """Beside the prediction for these cuts, those of the other two: mixed up, they would show."""
    random, start, exact = np.random.default_rng(1), 10, KERNELS[kernel]._replace(horizon=60)
    log_q, log_z = -random.exponential(0.7, 60), -random.exponential(0.2, 60)
    x = State(tuple(range(25)), np.append(log_q[:start], log_q[-15:]), np.append(log_z[:start], log_z[-15:]), "length")
    alike: Counter[str] = Counter()
    logs_u = np.linspace(-8, 3, 40).tolist()
    for log_u in logs_u:
        gives_up = exact.give_up(x, Move(start, start, None, log_u))()
        found = next((n for n in range(start, 60) if gives_up(log_q[n], log_z[n])), None)
        floor = log_u + exact.log_weight(x, start) - SLACK
        predicted = {
            other: next(
                (
                    n
                    for n in range(start, 60)
                    if fsum(log_z[start + 1 : n + 1])
                    - least(other, x, State(tuple(range(n + 1)), log_q[: n + 1], log_z[: n + 1], "length"), start)
                    < floor
                ),
                None,
            )
            for other in ("uniform", "entropy", "nonnull")
        }
        assert found == predicted[kernel]
        alike.update(other for other in predicted if predicted[other] == found)
    assert all(alike[other] <= len(logs_u) - 3 for other in alike if other != kernel), alike


def test_the_first_log_z_is_not_in_the_sum_and_equality_goes_on() -> None:
    for floor, ends in ((-0.75, False), (np.nextafter(-0.75, 0), True)):
        gives_up = watch(floor, 3)
        assert [gives_up(-1.0, -5.0), gives_up(-1.0, -0.75)] == [False, ends]


def test_certain_tokens_are_never_given_up_under_the_nonnull_bound() -> None:
    gives_up = watch(1e9, 0, less_null(0.0))
    assert not gives_up(0.0, 0.0), "q = 1: every move from here is null, G is 0 so far"
    assert gives_up(log(0.5), 0.0)


@pytest.mark.parametrize("kernel", ["uniform", "entropy", "nonnull"])
def test_alpha_one_accepts_up_to_the_length_factor(kernel: str) -> None:
    """At alpha = 1 every log Z is 0: r is G(x) / G(x'), which is 1 between answers of one length for uniform cuts."""
    model, exact = TOYS["eos"], KERNELS[kernel]
    states = [state_of(model, answer, 1.0) for answer in model.complete()]
    for x in states:
        for y in states:
            ratio = exact.log_ratio(x, y, divergence(x.tokens, y.tokens))
            assert ratio == pytest.approx(exact.log_normaliser(x) - exact.log_normaliser(y), abs=1e-12)
            if kernel != "nonnull" and len(x.tokens) == len(y.tokens):
                assert acceptance_probability(ratio) == pytest.approx(1.0, abs=1e-12)


def test_u_is_taken_as_one_minus_a_uniform_so_that_its_log_is_finite() -> None:
    x = state_of(TOYS["eos"], (1, 2, 0), 4.0)
    found = {Kernel(4).propose(x, RandomKey(9, 1, 0, move)).log_u for move in range(50)}
    assert len(found) == 50
    assert max(found) <= 0
    assert min(found) >= log1p(-np.nextafter(1, 0))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_move_is_a_pure_function_of_state_and_key(kernel: str) -> None:
    exact = KERNELS[kernel]._replace(horizon=4)
    x = state_of(TOYS["eos"], (1, 2, 0), 4.0)
    assert exact.propose(x, RandomKey(9, 1, 0, 5)) == exact.propose(x, RandomKey(9, 1, 0, 5))
    assert {exact.propose(x, RandomKey(9, 1, 0, move)).cut for move in range(60)} == {0, 1, 2}


def test_where_nothing_else_can_be_drawn_the_kernel_without_null_moves_stays() -> None:
    model = ToyLM(0, vocabulary=3, horizon=3)
    for logits in model.table.values():
        logits[1:] = -np.inf
    sample = ToyEngine(model, 1).run(Power(4.0, num_effective_moves=5).chain(model.prompt(), RandomKey(1, 0, 0)))
    assert sample.tokens == (0,)
    assert figures(sample).null == 5
    assert figures(sample).naive_tokens == 0
