"""The trace that a chain records: counts that add up, answers with weights that estimate what they should."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from evals.rng import RandomKey
from evals.samplers.paper import Paper
from evals.samplers.power import Power
from evals.types import Chain, Sample
from support.figures import figures
from support.law import SAVINGS, TOYS, paper, transition_matrix
from support.tiny_models import engine, make, prompt
from support.toy import ToyEngine, ToyLM

SAMPLERS = [
    Power(2.0, 30),
    Power(2.0, num_effective_moves=30),
    Power(2.0, 30, cuts="entropy"),
    Power(2.0, 9, blocks=3),
]


def run(model: ToyLM, sampler: Power | Paper, problem_id: int = 0) -> Sample:
    return ToyEngine(model, 1).run(sampler.chain(model.prompt(), RandomKey(1, problem_id, 0)))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_naive_tokens_are_what_the_naive_kernel_spends_on_the_same_moves(sampler: Power) -> None:
    for problem_id in range(20):
        whole = figures(run(TOYS["stop"], replace(sampler, early_rejection=False), problem_id))
        early = figures(run(TOYS["stop"], sampler, problem_id))
        assert whole.naive_tokens == whole.generated - whole.initial_tokens + whole.replayed_tokens
        assert whole.rejected_early == 0
        assert early.naive_tokens <= whole.naive_tokens
        saved = whole.generated - early.generated
        assert 0 <= early.rejected_early <= saved
        assert early.naive_tokens == whole.naive_tokens - saved + early.rejected_early


def test_without_savings_the_naive_tokens_are_the_generated_ones() -> None:
    info = figures(run(TOYS["stop"], Power(2.0, 40, False, False)))
    assert info.naive_tokens == info.generated - info.initial_tokens
    assert info.replayed_tokens == 0
    assert info.null > 0, "it too proposes the state itself"


@pytest.mark.parametrize("sampler", [*SAMPLERS, *(Power(4.0, 20, *s) for s in SAVINGS), paper(2, 2.0, 5, top_k=0)])
def test_counts_add_up_and_are_json(sampler: Power | Paper) -> None:
    for model in TOYS.values():
        sample = run(model, sampler)
        info = figures(sample)
        json.dumps(info.reported(), allow_nan=False)
        effective = info.moves - info.null
        assert 0 <= info.accepted <= effective
        assert info.rejected_early <= effective - info.accepted
        assert 1 <= info.distinct <= 1 + info.accepted
        assert info.log_p_trace[0] == round(info.log_p_first, 4)
        assert info.log_p_trace[-1] == round(info.log_p, 4)
        assert info.log_z_sum == pytest.approx(float(np.sum(sample.log_z)))
        if effective:
            assert 0 <= info.mean_cut < 1
            assert 0 <= info.mean_divergence < 1
            assert info.drift_max == pytest.approx(0.0, abs=1e-12)


def test_a_chain_without_moves_reports_none_of_what_it_has_not() -> None:
    sample = run(TOYS["eos"], Power(2.0, 0))
    info = figures(sample)
    assert sample.weighted == ()
    assert info.moves == info.naive_tokens == 0
    assert info.mean_cut is info.mean_divergence is info.drift_max is info.drift_mean is None
    assert info.log_p_first == info.log_p
    assert info.log_z_sum_first == info.log_z_sum


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("replay", [False, True])
def test_weights_estimate_the_mean_law_of_the_moves(replay: bool, early: bool) -> None:
    """Both estimators have the mean (1/N) sum over n of start * P^n; with the proposals they vary less."""
    model, count = TOYS["eos"], 1_500
    sampler = Power(2.0, 4, replay, early)
    answers, matrix = transition_matrix(model, 2.0, sampler.kernel(model.horizon))
    start = np.array([np.exp(np.sum(model.statistics(x, 2.0)[0])) for x in answers])
    expected = np.mean([start @ np.linalg.matrix_power(matrix, n) for n in range(1, 5)], axis=0)
    weights = defaultdict(list)
    for problem_id in range(count):
        sample = run(model, sampler, problem_id)
        assert sum(weight for _, weight in sample.weighted) == pytest.approx(1.0, abs=1e-12)
        for answer, weight in sample.weighted:
            weights[answer].append(weight)
    for x in np.flatnonzero(expected > 0.02):
        found = np.array(weights[answers[x]] + [0.0] * (count - len(weights[answers[x]])))
        assert abs(found.mean() - expected[x]) < 4 * found.std() / np.sqrt(count)
    assert np.sum(expected > 0.02) > 4


def test_recycled_proposals_vary_less_than_states() -> None:
    model, best = TOYS["flat"], max(TOYS["flat"].target(2.0), key=TOYS["flat"].target(2.0).__getitem__)
    spread = []
    for early in (False, True):
        samples = [run(model, Power(2.0, 6, True, early), problem_id) for problem_id in range(300)]
        spread.append(np.std([dict(sample.weighted).get(best, 0.0) for sample in samples]))
    assert spread[0] < spread[1]


def test_only_the_last_stage_is_weighted() -> None:
    model = TOYS["long"]
    for early in (False, True):
        for problem_id in range(10):
            sample = run(model, Power(2.0, 5, early_rejection=early, blocks=3), problem_id)
            assert all(model.ended(answer) for answer, _ in sample.weighted)


def test_drift_of_the_engine_is_rounding() -> None:
    on, to = engine(make("llama", seed=1).model), prompt(3, length=9, max_new=40, eos=[2])
    info = figures(on.run([Chain(to, Power(2.0, 12).chain(to, RandomKey(1, 0, 0)))])[0])
    assert info.drift_max < 1e-4
