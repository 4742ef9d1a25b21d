"""Proposals that run ahead change no chain: any number of slots, any order of arrival, toy engine and real one."""

from __future__ import annotations

from typing import Any

import pytest

from evals.rng import RandomKey
from evals.samplers.metropolis import Kernel
from evals.samplers.paper import Paper
from evals.samplers.power import Power
from evals.types import Chain, Sample, SamplingContext
from support.figures import figures
from support.law import TOYS, paper
from support.pages import audit
from support.tiny_models import Pair, engine, make, prompt
from support.toy import ToyEngine

SAMPLERS: dict[str, Power | Paper] = {
    "plain": Power(2.0, 12),
    "no savings": Power(2.0, 12, False, False),
    "nonnull": Power(2.0, num_effective_moves=12),
    "entropy, blocks": Power(2.0, 6, cuts="entropy", blocks=3),
    "paper": paper(2, 2.0, 5, top_k=0),
}


def essence(sample: Sample) -> tuple[Any, ...]:
    """A sample without the figures of discarded work."""
    info = {name: value for name, value in sample.chain.reported().items() if name != "discarded_tokens"}
    return sample.tokens, sample.log_q.tolist(), sample.log_z.tolist(), sample.ended, info, sample.weighted


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("toy", ["flat", "stop"])
def test_the_same_chain_for_any_prefetch_slots_and_order_of_arrival(toy: str, kind: str) -> None:
    model = TOYS[toy]
    discarded, most = 0, 0
    for problem_id in range(25):

        def run(prefetch: int, slots: int, order: int, problem_id: int = problem_id) -> tuple[Sample, ToyEngine]:
            on = ToyEngine(model, 1, slots, order)
            chain = SAMPLERS[kind].chain(model.prompt(), RandomKey(1, problem_id, 0), SamplingContext(prefetch))
            return on.run(chain), on

        alone, _ = run(0, 1, 0)
        assert figures(alone).discarded_tokens == 0
        for prefetch, slots, order in [(0, 8, 1), (1, 8, 2), (4, 8, 3), (4, 8, 4), (4, 3, 5), (9, 4, 6), (4, 1, 7)]:
            sample, on = run(prefetch, slots, order)
            assert essence(sample) == essence(alone)
            assert on.most <= min(1 + prefetch, slots)
            assert len(on.held) <= 2 + prefetch
            assert on.generated <= figures(sample).generated + figures(sample).discarded_tokens
            if not prefetch or slots == 1:
                assert figures(sample).discarded_tokens == 0
            discarded += figures(sample).discarded_tokens
            most = max(most, on.most)
    assert discarded > 0
    assert most == 5


def test_a_chain_without_idle_slots_plans_every_move_once(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []
    right = Kernel.propose
    monkeypatch.setattr(Kernel, "propose", lambda self, x, key: planned.append(key.move) or right(self, x, key))
    model = TOYS["flat"]
    on = ToyEngine(model, 1, slots=1)
    on.run(Power(2.0, 30).chain(model.prompt(), RandomKey(1, 0, 0), SamplingContext(8)))
    assert planned == list(range(1, 31))
    assert on.most == 1


def test_a_chain_runs_ahead_only_after_it_heard_of_idle_slots() -> None:
    model = TOYS["flat"]
    steps = Power(2.0, 9).chain(model.prompt(), RandomKey(1, 0, 0), SamplingContext(4))
    on = ToyEngine(model, 1)
    (first,) = steps.send(None)
    arrival = on.complete(first.request, model.prompt())  # type: ignore[union-attr]
    asked = steps.send((0, arrival._replace(idle=3)))
    assert len(asked) == 3
    parents = {operation.request.parent for operation in asked}  # type: ignore[union-attr]
    assert parents == {arrival.handle}, "all from the one state"


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("llama", seed=1)


REAL: dict[str, Power | Paper] = {
    "plain": Power(2.0, 5),
    "nonnull, blocks": Power(2.0, num_effective_moves=4, blocks=2),
    "entropy": Power(2.0, 6, cuts="entropy"),
    "paper": paper(16, 2.0, 4, top_k=20),
}


@pytest.mark.parametrize(
    "kind", ["plain", "paper", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("nonnull, blocks", "entropy"))]
)
def test_the_same_chains_on_the_engine_for_any_slots_and_prefetch(pair: Pair, kind: str) -> None:
    prompts = [prompt(i, length=(1, 9, 20)[i], max_new=32, eos=[2, 7]) for i in range(3)]
    results, discarded = [], 0
    for slots, prefetch in [(1, 0), (1, 4), (3, 1), (3, 4), (8, 0), (8, 4)]:
        on = engine(pair.model, slots)
        sampler, context = REAL[kind], SamplingContext(prefetch)
        samples = on.run([Chain(to, sampler.chain(to, RandomKey(1, i, 0), context)) for i, to in enumerate(prompts)])
        results.append([essence(sample) for sample in samples])
        audit(on._pool)
        for to, sample in zip(prompts, samples, strict=True):
            assert figures(sample).prefilled == len(to.token_ids) - 1, "the prompt, once"
        discarded += sum(figures(sample).discarded_tokens for sample in samples)
    for other in results[1:]:
        assert other == results[0]
    assert discarded > 0


def test_running_ahead_takes_fewer_steps(pair: Pair) -> None:
    steps = []
    to = prompt(1, length=9, max_new=60, eos=[2])
    for prefetch in (0, 4):
        on = engine(pair.model, slots=8)
        on.run([Chain(to, Power(2.0, 12).chain(to, RandomKey(1, 5, 0), SamplingContext(prefetch)))])
        steps.append(on.counters().steps)
    assert steps[1] < 0.8 * steps[0]
