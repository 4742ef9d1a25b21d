"""Best of K, importance sampling and majority: the right candidate, the exact law, whatever arrives when. On the engine
Power-SMC as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import chisquare

from evals.config import EngineConfig
from evals.engine.engine import Engine
from evals.engine.execution import prepare
from evals.engine.kv_cache import PrefixIndex
from evals.rng import RandomKey
from evals.samplers.base import pick
from evals.samplers.candidates import (
    BestOf,
    Majority,
    Snis,
    effective_size,
    likeliest,
    log_mean,
    normalised,
    systematic,
    winner,
)
from evals.samplers.registry import sampler_of
from evals.samplers.single import AtTemperature
from evals.types import Chain, Completion, Prompt, Sample, Sampler, SamplingContext
from support import tiny_models
from support.figures import figures
from support.pages import audit
from support.toy import ToyLM
from support.toy_crowd import Crowd, assert_same, distance, enumerated, mean_weights

SPREAD = ToyLM(2, vocabulary=3, horizon=4, spread=1.0)
ALPHA = 3.0


def snis_law(model: ToyLM, alpha: float, count: int) -> np.ndarray:
    """Exact law of one candidate of `count` draws of q, taken by weight: K q w E[1 / (w + w of the others)]."""
    _, _, q, log_w = enumerated(model, alpha)
    w = np.exp(log_w - log_w.max())
    total, chance = w, q
    for _ in range(count - 1):
        total, chance = total[..., None] + w, chance[..., None] * q
    axes = tuple(range(1, count))
    return count * w * (chance / total).sum(axis=axes)


def test_snis_of_two_and_three_has_the_enumerated_law() -> None:
    for count, chains in ((2, 6_000), (3, 4_000)):
        law = snis_law(SPREAD, ALPHA, count)
        assert law.sum() == pytest.approx(1, abs=1e-12)
        crowd, sampler = Crowd(SPREAD, seed=5), Snis(ALPHA, count)
        drawn = Counter(crowd.run(sampler, i).tokens for i in range(chains))
        counts = np.array([drawn[answer] for answer in enumerated(SPREAD, ALPHA).answers])
        rare = law * chains < 5
        seen = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(law[~rare], law[rare].sum()) * chains
        assert chisquare(seen, expected).pvalue > 1e-3


def test_snis_approaches_p_alpha() -> None:
    answers, target, q, _ = enumerated(SPREAD, ALPHA)
    exact = [distance(snis_law(SPREAD, ALPHA, count), target) for count in (1, 2, 3, 4)]
    assert exact[0] == pytest.approx(distance(q, target))
    assert exact == sorted(exact, reverse=True)
    crowd = Crowd(SPREAD, seed=6)
    found = []
    for count, chains in ((2, 3_000), (8, 1_000), (32, 400)):
        samples = [crowd.run(Snis(ALPHA, count), i) for i in range(chains)]
        found.append(distance(mean_weights(samples, answers), target))
    assert found[0] == pytest.approx(exact[1], abs=0.02)
    assert found[0] > 2 * found[1] > 3 * found[2]
    assert found[2] < 0.03


def test_candidate_0_is_the_low_temperature_run() -> None:
    for i in range(50):
        low = Crowd(SPREAD, seed=7).run(AtTemperature(1 / ALPHA), i)
        crowd = Crowd(SPREAD, seed=7)
        sample = crowd.run(Snis(ALPHA, 5), i)
        assert sample.weighted[0][0] == low.tokens
        words = [request.key for request in crowd.requests]
        assert len(set(words)) == 5
        assert figures(sample).generated == crowd.generated
        assert crowd.most_held <= 2


def test_one_candidate_is_the_low_temperature_run_by_every_rule() -> None:
    for i in range(20):
        low = Crowd(SPREAD, 3).run(AtTemperature(1 / ALPHA), i)
        for sampler in (BestOf(ALPHA, 1), Snis(ALPHA, 1), Majority(1 / ALPHA, 1)):
            assert Crowd(SPREAD, 3).run(sampler, i, str).tokens == low.tokens


def test_best_of_is_the_likeliest() -> None:
    for i in range(200):
        crowd = Crowd(SPREAD, seed=8)
        sample = crowd.run(BestOf(ALPHA, 6), i)
        drawn = [crowd.run(AtTemperature(1 / ALPHA), i).tokens] + [
            crowd.complete(r).tokens for r in crowd.requests[1:6]
        ]
        log_p = [SPREAD.statistics(answer, 1.0)[0].sum() for answer in drawn]
        assert sample.tokens == drawn[int(np.argmax(log_p))]
        assert figures(sample).log_p == pytest.approx(max(log_p), abs=1e-12)
        assert sample.weighted == ()


def completion(tokens: tuple[int, ...], log_p: float) -> Completion:
    return Completion(tokens, np.array([log_p]), np.array([0.0]), "eos", None, 0)


def test_of_equally_likely_ones_the_first() -> None:
    assert likeliest([completion((1,), -3.0), completion((2,), -1.0), completion((3,), -1.0)], 1.0) == 1


@pytest.mark.parametrize(
    ("drawn", "first", "votes"),
    [
        ([(5, -1.0), (6, -9.0), (6, -9.0)], 1, {"5": 1, "6": 2}),  # votes count before probability
        ([(5, -3.0), (6, -2.0), (5, -3.0), (6, -5.0)], 1, {"5": 2, "6": 2}),  # e^-2 + e^-5 > 2 e^-3
        ([(5, -3.0), (6, -3.5), (5, -3.0), (6, -2.9)], 0, {"5": 2, "6": 2}),
        ([(6, -2.0), (5, -2.0), (5, -2.0), (6, -2.0)], 0, {"6": 2, "5": 2}),  # equal: came first
        ([(0, -0.1), (0, -0.1), (7, -9.0)], 2, {"7": 1}),  # no answer, no vote
        ([(0, -2.0), (0, -0.1)], 0, {}),  # nobody votes
    ],
)
def test_majority(drawn: list[tuple[int, float]], first: int, votes: dict[str, int]) -> None:
    ballots = [str(token) if token else None for token, _ in drawn]
    assert winner([completion((token,), log_p) for token, log_p in drawn], ballots, 1.0) == (first, votes)


def test_majority_over_whole_chains() -> None:
    def vote(tokens: Sequence[int]) -> str | None:
        return str(len(tokens)) if len(tokens) < 4 else None

    for i in range(100):
        crowd = Crowd(SPREAD, seed=9)
        sample = crowd.run(Majority(1.0, 7), i, vote)
        lengths = Counter(len(crowd.complete(request).tokens) for request in crowd.requests[:7])
        assert figures(sample).votes == {str(n): count for n, count in lengths.items() if n < 4}
        if figures(sample).votes:
            assert figures(sample).votes[str(len(sample.tokens))] == max(figures(sample).votes.values())


def test_majority_needs_a_rule() -> None:
    with pytest.raises(ValueError, match=r"SamplingContext\.vote"):
        Crowd(SPREAD, 0).run(Majority(1.0, 2))


def test_weights() -> None:
    assert normalised([-1000.0, -1000.0]).tolist() == [0.5, 0.5]
    assert normalised([800.0, 800.0 + np.log(3)]) == pytest.approx([0.25, 0.75])
    assert effective_size(np.array([0.25] * 4)) == 4
    assert effective_size(np.array([1.0, 0.0])) == 1
    assert effective_size(normalised(np.log([1.0, 2.0, 3.0]).tolist())) == pytest.approx(36 / 14)
    assert log_mean([800.0, 800.0]) == pytest.approx(800.0)
    assert log_mean(np.log([1.0, 3.0]).tolist()) == pytest.approx(np.log(2))


def test_pick_and_systematic_follow_the_weights() -> None:
    weights = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    below = np.nextafter(1.0, 0.0)
    assert [pick(weights, u) for u in (0.0, 0.2499, 0.25, 0.9, below)] == [1, 1, 3, 3, 3]
    assert systematic(np.full(7, 1 / 7), 0.5) == list(range(7))
    assert systematic(np.array([0.0, 1.0]), below) == [1, 1]
    shares = normalised([0.1, -2.0, 1.3, 0.7, -0.4])
    children = np.array([np.bincount(systematic(shares, u), minlength=5) for u in (np.arange(2000) + 0.5) / 2000])
    np.testing.assert_allclose(children.mean(axis=0), 5 * shares, atol=2e-3)  # unbiased
    assert np.abs(children - 5 * shares).max() < 1  # and at most rounded


@pytest.mark.parametrize("sampler", [BestOf(2.0, 6), Snis(2.0, 6), Majority(0.5, 6)])
def test_the_order_of_arrival_does_not_matter(sampler: Sampler) -> None:
    for i in range(20):
        one, *others = (
            Crowd(SPREAD, 4, order).run(sampler, i, lambda tokens: str(sum(tokens)))
            for order in ("fifo", "lifo", "shuffled")
        )
        for other in others:
            assert_same(one, other)


def begun(sampler: Sampler, prompts: list[Prompt]) -> list[Chain]:
    context = SamplingContext(vote=lambda tokens: str(tokens[-1]))
    steps = [sampler.chain(to, RandomKey(1, i, 0), context) for i, to in enumerate(prompts)]
    return [Chain(to, one, sampler.sequences) for to, one in zip(prompts, steps, strict=True)]


ON_THE_ENGINE: list[dict[str, object]] = [
    {"kind": "best_of", "alpha": 2.0},
    {"kind": "snis", "alpha": 2.0},
    {"kind": "majority", "temperature": 0.5},
    {"kind": "smc", "alpha": 2.0, "smc_interval": 7, "smc_ramp": 9, "smc_threshold": 0.5},
    {"kind": "smc", "alpha": 2.0, "smc_interval": 7, "smc_ramp": 9, "smc_threshold": 1.0},
]


@pytest.mark.parametrize("settings", ON_THE_ENGINE, ids=lambda settings: " ".join(map(str, settings.values())))
def test_on_the_engine_for_any_number_of_slots(settings: dict[str, object]) -> None:
    """The same answers; every forward row is accounted for; nothing stays held."""
    model = tiny_models.make("llama", seed=1).model
    sampler = sampler_of(settings | {"num_candidates": 5})
    results = []
    for slots in (1, 3, 8):
        engine = Engine.build(prepare(model), EngineConfig(), slots=slots, max_length=64, sequences=sampler.sequences)
        prompts = [tiny_models.prompt(i, 17 + i, max_new=24, eos=[2, 7]) for i in range(4)]
        chains = begun(sampler, prompts)
        results.append(engine.run(chains))
        audit(engine._pool)
        counters = engine.counters()
        assert counters.kv_pages_used == 0
        assert counters.generated_tokens == sum(figures(sample).generated for sample in results[-1])
        assert counters.prefilled_tokens == sum(figures(sample).prefilled for sample in results[-1])
    if settings.get("smc_threshold") == 1:
        assert all(figures(sample).resampled > 0 for sample in results[0])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_same(one, two, but=("prefilled",))


@pytest.mark.parametrize(
    "kind", ["best_of", "smc", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("snis", "majority"))]
)
def test_the_prompt_is_computed_once_on_any_number_of_slots(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever length, with the answers of an engine that shares nothing."""
    model = tiny_models.make("llama", seed=1).model
    rare = {"smc_interval": 7, "smc_ramp": 9, "smc_threshold": 1.0} if kind == "smc" else {}
    sampler = sampler_of({"kind": kind, "num_candidates": 5} | rare)
    prompts = [tiny_models.prompt(i, length, max_new=16, eos=[2, 7]) for i, length in enumerate((1, 12, 17, 65, 90))]

    def run(slots: int) -> list[Sample]:
        engine = tiny_models.engine(model, slots=slots, max_length=106, num_pages=400)
        chains = begun(sampler, prompts)
        samples = engine.run(chains)
        audit(engine._pool)
        assert engine.counters().prefilled_tokens == sum(figures(sample).prefilled for sample in samples)
        return samples

    with monkeypatch.context() as patch:
        patch.setattr(PrefixIndex, "find", lambda self, tokens: [])
        alone = run(8)
    assert [figures(sample).prefilled for sample in alone] == [0, 5 * 11, 5 * 16, 5 * 64, 5 * 89]
    for slots in (1, 3, 8):
        samples = run(slots)
        assert [figures(sample).prefilled for sample in samples] == [0, 11, 16, 64, 89]
        for one, other in zip(alone, samples, strict=True):
            assert_same(one, other, but=("prefilled",))
