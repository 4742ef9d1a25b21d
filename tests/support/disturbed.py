"""Engines whose decoder fails or is resized on purpose, and the samples of an undisturbed one."""

from __future__ import annotations

import numpy as np

from evals.config import EngineConfig
from evals.engine.engine import Engine
from evals.engine.execution import prepare
from evals.rng import RandomKey
from evals.samplers.candidates import BestOf
from evals.samplers.power import Power
from evals.samplers.smc import Smc
from evals.types import Chain, Sample, SamplingContext
from support.pages import audit
from support.tiny_models import Pair, prompt

KINDS = {
    "power": Power(alpha=2.0, num_moves=4),
    "smc": Smc(alpha=2.0, num_candidates=5, smc_interval=7, smc_ramp=9, smc_threshold=1.0),
    "best_of": BestOf(alpha=2.0, num_candidates=4),
}


def run(pair: Pair, kind: str, slots: int, count: int = 4) -> tuple[list[Sample], Engine]:
    sampler = KINDS[kind]
    on = Engine.build(prepare(pair.model), EngineConfig(), slots=slots, max_length=96, sequences=sampler.sequences)
    prompts = [prompt(i, 3 + 11 * i % 50, max_new=24, eos=[2, 7]) for i in range(count)]
    context = SamplingContext(prefetch=4)
    steps = [sampler.chain(p, RandomKey(1, i, 0), context) for i, p in enumerate(prompts)]
    samples = on.run([Chain(p, one, sampler.sequences) for p, one in zip(prompts, steps, strict=True)])
    audit(on._pool)
    assert on.counters().kv_pages_used == 0
    return samples, on


def assert_same(one: Sample, two: Sample) -> None:
    """All but the tokens prefilled; statistics up to rounding, since keys are written in passes of another shape."""
    assert (one.tokens, one.ended) == (two.tokens, two.ended)
    np.testing.assert_allclose(one.log_q, two.log_q, atol=1e-4)
    np.testing.assert_allclose(one.log_z, two.log_z, atol=1e-4)
    first, second = one.chain.reported(), two.chain.reported()
    assert first.keys() == second.keys()
    for name in first.keys() & {"moves", "null", "accepted", "generated", "rounds", "resampled"}:
        assert first[name] == second[name], name
