"""The kernel leaves p^alpha invariant, by enumeration; the production chain has the law start * P^N, by simulation."""

from __future__ import annotations

from collections import Counter
from math import exp, fsum, log, log1p

import numpy as np
import pytest
from scipy.stats import chisquare
from toy import ToyEngine, ToyLM

from evals.samplers import metropolis
from evals.samplers.metropolis import State, acceptance, cut_position, first_divergence, floor, log_weight, plan
from evals.samplers.power import Power
from evals.samplers.single import Single

TOYS = {
    "eos": ToyLM(1, vocabulary=3, horizon=4),
    "flat": ToyLM(2, vocabulary=4, horizon=3, spread=0.3),
    "peaked": ToyLM(3, vocabulary=3, horizon=5, spread=2.5),
    "stop": ToyLM(4, vocabulary=3, horizon=5, stop=(1, 2)),
}
SAVINGS = [(False, False), (True, False), (False, True), (True, True)]


def state_of(model: ToyLM, answer: tuple[int, ...], alpha: float) -> State:
    ended = model.ended(answer)
    assert ended is not None
    return State(answer, *model.statistics(answer, alpha), ended)


def divergence(x: tuple[int, ...], y: tuple[int, ...]) -> int:
    return next((t for t, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), min(len(x), len(y)))


def transition_matrix(model: ToyLM, alpha: float, replay: bool, accept=acceptance) -> tuple[list, np.ndarray]:
    """P[i, j] of one move, from the kernel's own acceptance, every cut and every ending that q can draw."""
    answers = list(model.complete())
    index = {answer: i for i, answer in enumerate(answers)}
    states = [state_of(model, answer, alpha) for answer in answers]
    matrix = np.zeros((len(answers), len(answers)))
    for i, x in enumerate(states):
        for cut in range(len(x.tokens)):
            for proposal in model.complete(x.tokens[:cut]):
                j = index[proposal]
                start = max(cut, divergence(x.tokens, proposal)) if replay else cut
                chance = exp(fsum(states[j].log_q[cut:])) / len(x.tokens)
                taken = 1.0 if i == j else accept(x, states[j], start)
                matrix[i, j] += chance * taken
                matrix[i, i] += chance * (1 - taken)
    return answers, matrix


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("toy", TOYS)
def test_kernel_leaves_p_alpha_invariant(toy: str, alpha: float, replay: bool) -> None:
    model = TOYS[toy]
    answers, matrix = transition_matrix(model, alpha, replay)
    target = np.array([model.target(alpha)[x] for x in answers])
    assert {len(x) for x in answers} != {model.horizon}, "the toy must have answers of several lengths"
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(target @ matrix, target, atol=1e-12)
    flow = target[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-14)


@pytest.mark.parametrize("toy", ["eos", "stop"])
def test_kernel_converges_to_p_alpha_and_to_nothing_else(toy: str) -> None:
    model = TOYS[toy]
    answers, matrix = transition_matrix(model, 4.0, replay=True)
    stationary = np.linalg.matrix_power(matrix, 1 << 14)[0]
    target = np.array([model.target(4.0)[x] for x in answers])
    assert np.abs(stationary - target).sum() / 2 < 1e-9


def wrong(log_ratio):
    def accept(x: State, y: State, start: int) -> float:
        right = log_weight(y.log_z[start + 1 :], len(y.tokens)) - floor(x, start, 0.0)
        return exp(min(0.0, right + log_ratio(x, y, start)))

    return accept


MUTANTS = {
    "no length factor": wrong(lambda x, y, d: log(len(y.tokens) / len(x.tokens))),
    "inverted length factor": wrong(lambda x, y, d: 2 * log(len(y.tokens) / len(x.tokens))),
    "state's sum cut at the draft's end": wrong(
        lambda x, y, d: fsum(x.log_z[d + 1 :]) - fsum(x.log_z[d + 1 : len(y.tokens)])
    ),
    "q in the ratio": wrong(lambda x, y, d: fsum(x.log_q[d:]) - fsum(y.log_q[d:])),
    "q with the wrong sign": wrong(lambda x, y, d: 2 * (fsum(y.log_q[d:]) - fsum(x.log_q[d:]))),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_kernels_are_seen(mutant: str) -> None:
    drift = []
    for model in TOYS.values():
        answers, matrix = transition_matrix(model, 2.0, replay=False, accept=MUTANTS[mutant])
        target = np.array([model.target(2.0)[x] for x in answers])
        drift.append(np.abs(target @ matrix - target).sum() / 2)
    assert max(drift) > 1e-4  # the right kernel's is 1e-12


@pytest.mark.parametrize("toy", ["eos", "peaked", "stop"])
def test_replay_proposes_exactly_q(toy: str) -> None:
    """P(coins hold up to d) * P(coin fails) * (q without x_d) * (q after d) is q, for every proposal."""
    model = TOYS[toy]
    for answer in model.complete():
        x = state_of(model, answer, 4.0)
        q_x = np.exp(x.log_q)
        for cut in range(len(answer)):
            for proposal in model.complete(answer[:cut]):
                y = state_of(model, proposal, 4.0)
                d = divergence(answer, proposal)
                chance = float(np.prod(q_x[cut:d]))
                if proposal != answer:
                    masked = np.exp(model.log_law(answer[:d], 4.0)[0])
                    masked[answer[d]] = 0
                    chance *= (1 - q_x[d]) * masked[proposal[d]] / masked.sum() * exp(fsum(y.log_q[d + 1 :]))
                assert chance == pytest.approx(exp(fsum(y.log_q[cut:])), abs=1e-14)


def test_coins_stop_at_the_first_that_fails() -> None:
    log_q = np.log([0.9, 0.5, 0.8, 1.0])
    assert first_divergence(log_q, 1, np.array([0.4, 0.9, 0.0])) == 2
    assert first_divergence(log_q, 1, np.array([0.5, 0.0, 0.0])) == 1
    assert first_divergence(log_q, 1, np.array([0.4, 0.7, 0.999])) == 4
    assert first_divergence(log_q, 3, np.array([np.nextafter(1, 0)])) == 4


def test_shared_prefix_gives_the_identity_of_densities() -> None:
    """alpha log p = log q + log Z, token by token (Rényi identity)."""
    model = TOYS["peaked"]
    for answer in model.complete():
        log_q, log_z = model.statistics(answer, 4.0)
        np.testing.assert_allclose(4.0 * model.statistics(answer, 1.0)[0], log_q + log_z, atol=1e-12)


def drawn(model: ToyLM, sampler: Power, count: int, seed: int = 7) -> Counter:
    """Answers of independent production chains on the scripted engine."""
    engine = ToyEngine(model, seed)
    return Counter(engine.run(sampler.chain(model.prompt(), seed, i, 0)).tokens for i in range(count))


def p_value(model: ToyLM, sampler: Power, seen: Counter) -> float:
    """Chi-square of answers against start * P^N, cells with fewer than five expected pooled."""
    answers, matrix = transition_matrix(model, sampler.alpha, replay=True)
    start = np.array([exp(fsum(model.statistics(x, sampler.alpha)[0])) for x in answers])
    expected = seen.total() * (start @ np.linalg.matrix_power(matrix, sampler.num_moves))
    observed = np.array([seen[x] for x in answers], dtype=float)
    large = expected >= 5
    pooled = [np.append(v[large], v[~large].sum()) for v in (observed, expected)]
    if pooled[1][-1] == 0:
        pooled = [v[:-1] for v in pooled]
    return float(chisquare(pooled[0], pooled[1]).pvalue)


@pytest.mark.parametrize(("replay", "early"), SAVINGS)
@pytest.mark.parametrize(("toy", "num_moves"), [("eos", 0), ("eos", 3), ("stop", 2)])
def test_production_chain_has_the_exact_law(toy: str, num_moves: int, replay: bool, early: bool) -> None:
    sampler = Power(2.0, num_moves, replay, early)
    assert p_value(TOYS[toy], sampler, drawn(TOYS[toy], sampler, 2_000)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("toy", "num_moves", "replay", "early"),
    [("eos", 3, *savings) for savings in SAVINGS] + [(toy, n, True, True) for toy in ("flat", "stop") for n in (1, 30)],
)
def test_production_chain_has_the_exact_law_20000_chains(toy: str, num_moves: int, replay: bool, early: bool) -> None:
    sampler = Power(2.0, num_moves, replay, early)
    assert p_value(TOYS[toy], sampler, drawn(TOYS[toy], sampler, 20_000)) > 1e-4


def masked_q_stored(state, start, tokens, log_q, log_z, ended):
    masked = log_q.copy()
    masked[0] = log_q[0] - np.log1p(-np.exp(state.log_q[start]))  # q(v) / (1 - q(x_d)), what the draw used
    return metropolis.spliced(state, start, tokens, masked, log_z, ended)


def inverted_length_weight(log_z_after, length: int) -> float:
    return log_weight(log_z_after, length) + 2 * log(length)


def coin_shares_the_token_uniform(seed, key, cut, length):
    return metropolis.uniforms(seed, np.broadcast_to(key, (length - cut, 3)), np.arange(cut, length))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("evals.samplers.power.spliced", masked_q_stored),
        ("evals.samplers.power.log_weight", inverted_length_weight),
        ("evals.samplers.metropolis.coins", coin_shares_the_token_uniform),
        ("evals.samplers.power.key", lambda problem, sample, move: (problem, sample, 0)),
    ],
)
def test_chains_of_wrong_kernels_fail_the_law(name: str, mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name, mutant)
    sampler = Power(2.0, 30, True, False)
    values = [p_value(TOYS[toy], sampler, drawn(TOYS[toy], sampler, 20_000)) for toy in ("eos", "flat")]
    assert min(values) < 1e-6


def test_early_rejection_changes_no_decision() -> None:
    saved = 0
    for toy, replay in [(toy, replay) for toy in TOYS for replay in (False, True)]:
        model = TOYS[toy]
        for problem_id in range(60):
            engines = ToyEngine(model, 1), ToyEngine(model, 1)
            plain = engines[0].run(Power(4.0, 25, replay, False).chain(model.prompt(), 1, problem_id, 0))
            early = engines[1].run(Power(4.0, 25, replay, True).chain(model.prompt(), 1, problem_id, 0))
            assert plain.tokens == early.tokens
            assert plain.chain["log_p_trace"] == early.chain["log_p_trace"]
            assert [r[:4] for r in engines[0].requests] == [r[:4] for r in engines[1].requests]
            saved += plain.chain["generated"] - early.chain["generated"]
    assert saved > 0


def test_replay_spends_no_pass_on_a_null_move() -> None:
    model = TOYS["peaked"]
    engine = ToyEngine(model, 3)
    info = engine.run(Power(4.0, 60).chain(model.prompt(), 3, 0, 0)).chain
    assert info["null"] > 0
    assert len(engine.requests) == 1 + info["moves"] - info["null"]


def test_alpha_one_accepts_every_draft_of_equal_length() -> None:
    model = TOYS["eos"]
    x, y = (state_of(model, a, 1.0) for a in [(1, 2, 0), (1, 1, 0)])
    assert acceptance(x, y, 1) == pytest.approx(1.0, abs=1e-12)


def test_cuts_are_uniform_over_the_tokens() -> None:
    assert Counter(cut_position(4, u / 64) for u in range(64)) == {0: 16, 1: 16, 2: 16, 3: 16}
    assert cut_position(7, np.nextafter(1, 0)) == 6


def test_floor_takes_one_minus_u() -> None:
    x = state_of(TOYS["eos"], (1, 2, 0), 4.0)
    assert floor(x, 2, 0.0) == pytest.approx(-log(3))
    assert floor(x, 2, 0.9) == pytest.approx(log1p(-0.9) - log(3))


@pytest.mark.parametrize(("replay", "early"), SAVINGS)
def test_chain_settles_every_draft_and_restores_without_prefill(replay: bool, early: bool) -> None:
    model = TOYS["peaked"]
    engine = ToyEngine(model, seed=3)
    sample = engine.run(Power(4.0, 40, replay, early).chain(model.prompt(), 3, 11, 2))
    assert all(request.parent is not None for request in engine.requests[1:])
    moves = [request.key[2] for request in engine.requests]
    assert moves == sorted(set(moves))
    assert {request.key[:2] for request in engine.requests} == {(11, 2)}
    assert len(engine.held) <= 2, "the state, and the last draft until the chain ends"
    info = sample.chain
    assert info["moves"] == 40
    assert 0 < info["accepted"] + info["null"] <= 40
    assert info["prefilled"] == 0
    assert info["generated"] == engine.generated
    np.testing.assert_allclose(sample.log_q, model.statistics(sample.tokens, 4.0)[0], atol=1e-12)
    np.testing.assert_allclose(sample.log_z, model.statistics(sample.tokens, 4.0)[1], atol=1e-12)


def test_move_zero_is_the_low_temperature_answer() -> None:
    model = TOYS["eos"]
    for problem_id in range(50):
        low = ToyEngine(model, 5).run(Single(4.0).chain(model.prompt(), 5, problem_id, 0))
        power = ToyEngine(model, 5).run(Power(4.0, 0).chain(model.prompt(), 5, problem_id, 0))
        assert low.tokens == power.tokens


def test_a_move_is_a_pure_function_of_state_and_key() -> None:
    x = state_of(TOYS["eos"], (1, 2, 0), 4.0)
    assert plan(x, 9, (1, 0, 5), True) == plan(x, 9, (1, 0, 5), True)
    assert {plan(x, 9, (1, 0, move), True).cut for move in range(40)} == {0, 1, 2}
