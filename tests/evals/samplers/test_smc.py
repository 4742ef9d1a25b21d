"""Power-SMC: its weights, its estimate of the normaliser, its law, and the same particles in any order of arrival."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from evals.rng import MAX_SAMPLES
from evals.samplers.base import State
from evals.samplers.single import AtTemperature
from evals.samplers.smc import Particle, Smc
from support.figures import figures
from support.toy import ToyLM
from support.toy_crowd import Crowd, assert_same, distance, enumerated, mean_weights

TOYS = {
    "eos": ToyLM(12, vocabulary=3, horizon=5),
    "stop": ToyLM(31, vocabulary=3, horizon=5, stop=(1, 2)),
}
"""Low temperature is far from their p^ALPHA: total variation .68 and .74."""
ALPHA = 4.0


def grown(model: ToyLM, answer: tuple[int, ...], alpha: float) -> Particle:
    log_q, log_z = model.statistics(answer, alpha)
    return Particle(State(answer, log_q, log_z, "length"))


@pytest.mark.parametrize("ramp", [1, 3, 9])
@pytest.mark.parametrize("toy", TOYS)
def test_weights_add_up_increment_by_increment(toy: str, ramp: int) -> None:
    """The increments of the paper, token by token, those of ended particles included, against the closed form."""
    model, smc = TOYS[toy], Smc(ALPHA, 4, ramp, 2, 0.5)
    for answer in model.complete():
        log_p = model.statistics(answer, 1.0)[0]
        log_q = model.statistics(answer, ALPHA)[0]
        log_w, before = 0.0, 0.0
        for t in range(1, 2 * model.horizon + 1):
            alpha_t = smc.exponent(t)
            log_w += (alpha_t - before) * log_p[: t - 1].sum() if t > 1 else 0.0
            if t <= len(answer):
                log_w += alpha_t * log_p[t - 1] - log_q[t - 1]
            found = grown(model, answer[:t], ALPHA).log_w(ALPHA, alpha_t)
            assert found == pytest.approx(log_w, abs=1e-12)
            before = alpha_t
        log_w += (ALPHA - before) * log_p.sum()
        assert grown(model, answer, ALPHA).log_w(ALPHA, ALPHA) == pytest.approx(log_w, abs=1e-12)


def test_the_exponent_rises_to_alpha() -> None:
    smc = Smc(4.0, 1, 6, 1, 0.5)
    assert [smc.exponent(t) for t in (1, 3, 6, 60)] == [1.5, 2.5, 4.0, 4.0]
    assert Smc(4.0, 1, 1, 1, 0.5).exponent(1) == 4.0


SETTINGS = [(1, 1, 1.0), (3, 1, 0.5), (4, 2, 1.0), (9, 3, 0.7)]


@pytest.mark.parametrize(("ramp", "interval", "threshold"), SETTINGS)
@pytest.mark.parametrize("toy", TOYS)
def test_the_normaliser_is_estimated_without_bias(toy: str, ramp: int, interval: int, threshold: float) -> None:
    model = TOYS[toy]
    _, _, q, log_w = enumerated(model, ALPHA)
    truth = float(np.sum(q * np.exp(log_w)))
    crowd = Crowd(model, seed=1)
    samples = [crowd.run(Smc(ALPHA, 6, ramp, interval, threshold), i) for i in range(500)]
    estimates = np.array([exp(figures(sample).log_z_hat) for sample in samples])
    assert abs(estimates.mean() - truth) < 3 * estimates.std() / len(estimates) ** 0.5
    assert sum(figures(sample).resampled for sample in samples) > 50


@pytest.mark.parametrize("toy", TOYS)
def test_the_law_approaches_p_alpha(toy: str) -> None:
    model = TOYS[toy]
    answers, target, q, _ = enumerated(model, ALPHA)
    crowd, found = Crowd(model, seed=2), [distance(q, target)]
    for particles, chains in ((4, 400), (32, 100), (256, 12)):
        samples = [crowd.run(Smc(ALPHA, particles, 2, 1, 0.9), i) for i in range(chains)]
        found.append(distance(mean_weights(samples, answers), target))
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.6
    assert found[-1] < 0.1


def test_the_answer_is_drawn_by_weight() -> None:
    """Over many chains it is a particle as often as its weight says: sum of (hit - weight) is within 4 errors of 0."""
    model, crowd = TOYS["eos"], Crowd(TOYS["eos"], seed=3)
    gaps = []
    for i in range(1_000):
        sample = crowd.run(Smc(ALPHA, 3, 2, 2, 0.5), i)
        weights = {tokens: 0.0 for tokens, _ in sample.weighted}
        for tokens, weight in sample.weighted:
            weights[tokens] += weight
        assert sum(weights.values()) == pytest.approx(1)
        heaviest = max(weights, key=lambda tokens: weights[tokens])
        gaps.append((sample.tokens == heaviest) - weights[heaviest])
        assert figures(sample).log_p == pytest.approx(model.statistics(sample.tokens, 1.0)[0].sum())
    assert abs(np.mean(gaps)) < 4 * np.std(gaps) / len(gaps) ** 0.5


def test_weights_that_are_not_reset_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TOYS["eos"]
    answers, target, _, _ = enumerated(model, ALPHA)

    def off() -> float:
        crowd = Crowd(model, seed=2)
        samples = [crowd.run(Smc(ALPHA, 256, 2, 1, 1.0), i) for i in range(8)]
        return distance(mean_weights(samples, answers), target)

    right = off()
    monkeypatch.setattr(Particle, "_replace", forgetful(Particle._replace))
    assert off() > 0.4 > 4 * right


def forgetful(replace):
    return lambda self, **fields: replace(self, **{name: value for name, value in fields.items() if name != "settled"})


@pytest.mark.parametrize("interval", [1, 2, 5, 50])
def test_particles_without_resampling_are_snis(interval: int) -> None:
    """Without resampling, rounds leave the weights of whole answers; particle 0 begins like the low-temperature run."""
    for i in range(40):
        crowd = Crowd(TOYS["stop"], seed=4)
        sample = crowd.run(Smc(ALPHA, 5, 3, interval, 0.0), i)
        log_w = np.array([TOYS["stop"].statistics(tokens, ALPHA)[1].sum() for tokens, _ in sample.weighted])
        weights = np.exp(log_w - np.logaddexp.reduce(log_w))
        np.testing.assert_allclose([weight for _, weight in sample.weighted], weights, atol=1e-12)
        assert figures(sample).log_z_hat == pytest.approx(np.logaddexp.reduce(log_w) - np.log(5), abs=1e-12)
        assert figures(sample).resampled == 0
        low = Crowd(TOYS["stop"], seed=4).run(AtTemperature(1 / ALPHA), i)
        assert sample.weighted[0][0][:interval] == low.tokens[:interval]


def test_no_two_draws_share_a_key() -> None:
    for i in range(50):
        crowd = Crowd(TOYS["eos"], seed=5)
        sample = crowd.run(Smc(ALPHA, 6, 2, 2, 1.0), i)
        words = [request.key for request in crowd.requests]
        assert len(set(words)) == len(words)
        assert {word.problem for word in words} == {i}
        assert figures(sample).generated == crowd.generated
        assert figures(sample).rounds == 1 + max(word.move for word in words)
        assert crowd.most_held <= Smc(ALPHA, 6, 2, 2, 1.0).sequences


def test_particles_are_limited_by_the_words_of_a_key() -> None:
    for count in (0, MAX_SAMPLES + 1):
        with pytest.raises(ValueError, match="equal to"):
            Smc(ALPHA, count, 1, 1, 0.5)


@pytest.mark.parametrize("horizon", [1, 2])
def test_answers_at_once_at_the_horizon(horizon: int) -> None:
    model = ToyLM(3, vocabulary=3, horizon=horizon)
    for i in range(20):
        sample = Crowd(model, seed=6).run(Smc(ALPHA, 4, 5, 1, 1.0), i)
        assert model.ended(sample.tokens) == sample.ended
        assert figures(sample).rounds <= horizon


def test_the_order_of_arrival_does_not_matter() -> None:
    for i in range(20):
        one, *others = (
            Crowd(TOYS["eos"], 4, order).run(Smc(ALPHA, 6, 2, 2, 1.0), i) for order in ("fifo", "lifo", "shuffled")
        )
        for other in others:
            assert_same(one, other)


def test_the_effective_size_counts_copies_once() -> None:
    """Of 64 particles on an enumerable model many are equal; their weights alone would hide it."""
    model = ToyLM(1, vocabulary=3, horizon=4)
    info = figures(Crowd(model, 3).run(Smc(2.0, 64, smc_ramp=2, smc_interval=1, smc_threshold=0.9)))
    assert info.resampled > 0
    assert info.distinct < 40
    assert info.ess_final <= info.distinct
