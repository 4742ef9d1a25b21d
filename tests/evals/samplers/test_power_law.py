"""The production chain has the exact law of its kernels and stages, by simulation on the scripted engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evals import rng
from evals.rng import Purpose, RandomKey
from evals.samplers.power import Power
from evals.samplers.single import AtTemperature
from evals.stopping import StopStrings
from evals.types import Prompt
from support.figures import figures
from support.law import SAVINGS, TOYS, drawn, law, p_value
from support.toy import EOS, PROBLEMS_AT_ONCE, ToyEngine, ToyLM, row

SAMPLERS = {
    "nonnull": Power(2.0, num_effective_moves=3),
    "entropy": Power(2.0, 3, cuts="entropy"),
    "entropy, power 3, no replay": Power(2.0, 3, replay=False, cuts="entropy", entropy_power=3.0),
    "blocks": Power(2.0, 2, blocks=3),
    "blocks, nonnull": Power(2.0, num_effective_moves=2, blocks=2),
    "blocks, entropy": Power(2.0, 2, blocks=2, cuts="entropy"),
}


@pytest.mark.parametrize("purpose", [Purpose.TOKEN, Purpose.COIN, Purpose.CUT, Purpose.ACCEPT])
def test_the_toys_table_has_the_numbers_of_every_other_run(purpose: Purpose) -> None:
    for key in [(0, 0, 0), (PROBLEMS_AT_ONCE + 3, 2 | 1 << 16, 30)]:
        keyed = RandomKey(7, *key)
        numbers = row(keyed, purpose)
        assert numbers == [rng.uniform(keyed, place, purpose) for place in range(len(numbers))]


@pytest.mark.parametrize(("replay", "early"), SAVINGS)
@pytest.mark.parametrize(("toy", "num_moves"), [("eos", 0), ("eos", 3), ("stop", 2)])
def test_production_chain_has_the_exact_law(toy: str, num_moves: int, replay: bool, early: bool) -> None:
    sampler = Power(2.0, num_moves, replay, early)
    assert p_value(TOYS[toy], sampler, drawn(TOYS[toy], sampler, 1_000)) > 1e-3


@pytest.mark.parametrize("kind", SAMPLERS)
def test_chains_of_every_kernel_have_their_exact_law(kind: str) -> None:
    assert p_value(TOYS["stop"], SAMPLERS[kind], drawn(TOYS["stop"], SAMPLERS[kind], 2_000)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("toy", "num_moves", "replay", "early"),
    [("eos", 3, *savings) for savings in SAVINGS] + [(toy, n, True, True) for toy in ("flat", "stop") for n in (1, 30)],
)
def test_production_chain_has_the_exact_law_20000_chains(toy: str, num_moves: int, replay: bool, early: bool) -> None:
    sampler = Power(2.0, num_moves, replay, early)
    assert p_value(TOYS[toy], sampler, drawn(TOYS[toy], sampler, 20_000)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "toy"),
    [(kind, "stop") for kind in SAMPLERS]
    + [(kind, toy) for kind in ("nonnull", "entropy", "blocks") for toy in ("flat", "forbidden")],
)
def test_20000_chains_of_every_kernel_have_their_exact_law(kind: str, toy: str) -> None:
    assert p_value(TOYS[toy], SAMPLERS[kind], drawn(TOYS[toy], SAMPLERS[kind], 20_000)) > 1e-4


def test_stages_and_kernels_approach_p_alpha() -> None:
    """The exact laws of the samplers, as their moves grow."""
    target = TOYS["stop"].target(2.0)
    for kind, sampler in SAMPLERS.items():
        field = "num_moves" if sampler.num_effective_moves is None else "num_effective_moves"
        near, far = (law(TOYS["stop"], replace(sampler, **{field: n})) for n in (1000, 1))
        assert sum(abs(near[x] - target[x]) for x in target) < 1e-6, kind
        assert sum(abs(far[x] - target[x]) for x in target) > 1e-2, kind


@pytest.mark.parametrize("sampler", [Power(4.0, 25), Power(4.0, 25, replay=False), *SAMPLERS.values()])
def test_early_rejection_gives_the_same_chains_for_fewer_tokens(sampler: Power) -> None:
    saved = 0
    for model in TOYS.values():
        for problem_id in range(12):
            engines = ToyEngine(model, 1), ToyEngine(model, 1)
            plain, early = (
                engine.run(
                    replace(sampler, alpha=4.0, early_rejection=on).chain(model.prompt(), RandomKey(1, problem_id, 0))
                )
                for engine, on in zip(engines, (False, True), strict=True)
            )
            assert plain.tokens == early.tokens
            assert figures(plain).log_p_trace == figures(early).log_p_trace
            assert [r[:4] for r in engines[0].requests] == [r[:4] for r in engines[1].requests]
            saved += figures(plain).generated - figures(early).generated
    assert saved > 0


def test_replay_spends_no_pass_on_a_null_move() -> None:
    model = TOYS["peaked"]
    engine = ToyEngine(model, 3)
    info = figures(engine.run(Power(4.0, 60).chain(model.prompt(), RandomKey(3, 0, 0))))
    assert info.null > 0
    assert len(engine.requests) == 1 + info.moves - info.null


def test_the_kernel_without_null_moves_has_none() -> None:
    model = TOYS["peaked"]
    engine = ToyEngine(model, 3)
    info = figures(engine.run(Power(4.0, num_effective_moves=40).chain(model.prompt(), RandomKey(3, 0, 0))))
    assert (info.null, info.moves) == (0, 40)
    assert len(engine.requests) == 41


@pytest.mark.parametrize("sampler", [*SAMPLERS.values(), *(Power(4.0, 40, *savings) for savings in SAVINGS)])
def test_chain_settles_every_proposal_and_restores_without_prefill(sampler: Power) -> None:
    model = TOYS["peaked"]
    engine = ToyEngine(model, seed=3)
    sampler = replace(sampler, alpha=4.0)
    sample = engine.run(sampler.chain(model.prompt(), RandomKey(3, 11, 2)))
    assert all(request.parent is not None for request in engine.requests[1:])
    moves = [request.key.move for request in engine.requests]
    assert moves == sorted(set(moves))
    assert {request.key[:3] for request in engine.requests} == {(3, 11, 2)}
    assert len(engine.held) <= 2, "the state, and the last draft until the chain ends"
    info = figures(sample)
    assert info.moves == sampler.moves_per_stage * sampler.blocks
    assert info.generated == engine.generated
    assert info.prefilled == 0
    np.testing.assert_allclose(sample.log_q, model.statistics(sample.tokens, 4.0)[0], atol=1e-12)
    np.testing.assert_allclose(sample.log_z, model.statistics(sample.tokens, 4.0)[1], atol=1e-12)


def test_stages_grow_the_answer_and_extend_only_what_has_not_ended() -> None:
    model = ToyLM(8, vocabulary=3, horizon=6)
    sampler = Power(2.0, 4, blocks=3)
    extended = 0
    for problem_id in range(40):
        engine = ToyEngine(model, 1)
        sample = engine.run(sampler.chain(model.prompt(), RandomKey(1, problem_id, 0)))
        free = [request for request in engine.requests if request.give_up is None]
        assert [request.max_new for request in free] == [2] * len(free)
        assert figures(sample).moves == 12
        assert len(figures(sample).log_p_trace) == 1 + 4, "the way is that of the last stage"
        assert figures(sample).initial_tokens <= 2 * len(free)
        assert model.ended(sample.tokens) == sample.ended
        extended += len(free) - 1
    assert extended > 10


def test_no_two_stages_are_alike() -> None:
    assert Power(2.0, 4, blocks=3).horizons(160) == [54, 107, 160]
    assert Power(2.0, 4, blocks=5).horizons(2) == [1, 2]


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="coins of replay"):
        Power(2.0, replay=False, num_effective_moves=1)
    with pytest.raises(ValueError, match="needs cuts = uniform"):
        Power(2.0, num_effective_moves=1, cuts="entropy")


def test_move_zero_is_the_low_temperature_answer() -> None:
    model = TOYS["eos"]
    for problem_id in range(50):
        low = ToyEngine(model, 5).run(AtTemperature(1 / 4.0).chain(model.prompt(), RandomKey(5, problem_id, 0)))
        power = ToyEngine(model, 5).run(Power(4.0, 0).chain(model.prompt(), RandomKey(5, problem_id, 0)))
        assert low.tokens == power.tokens


@pytest.mark.parametrize("sampler", [Power(1.0, 20), Power(1.0, num_effective_moves=20), Power(1.0, 9, blocks=2)])
def test_alpha_one_gives_up_no_proposal_that_is_not_longer(sampler: Power) -> None:
    """All log Z are 0: what can reject a proposal is the factor G(x) / G(x') alone, so with one length nothing is."""
    model = ToyLM(2, vocabulary=3, horizon=4)
    for prefix, logits in model.table.items():
        logits[EOS] = -np.inf if len(prefix) < 3 else logits[EOS]
    for problem_id in range(20):
        info = figures(ToyEngine(model, 1).run(sampler.chain(model.prompt(), RandomKey(1, problem_id, 0))))
        assert info.log_z_sum == pytest.approx(0.0, abs=1e-12)
        if sampler.num_effective_moves is None:
            assert info.accepted == info.moves - info.null > 0


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_large_alpha_overflows_nowhere(kind: str) -> None:
    """At alpha = 1000 only near-ties of the most probable tokens are ever drawn."""
    model = TOYS["flat"]
    sampler = replace(SAMPLERS[kind], alpha=1000.0)
    best = max(model.target(1.0).values())
    for early in (False, True):
        for problem_id in range(10):
            chain = replace(sampler, early_rejection=early).chain(model.prompt(), RandomKey(1, problem_id, 0))
            sample = ToyEngine(model, 1).run(chain)
            assert np.isfinite(figures(sample).log_p)
            assert figures(sample).log_p <= np.log(best) + 1e-9
            assert sum(weight for _, weight in sample.weighted) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_an_answer_may_be_one_token_or_end_at_the_horizon(kind: str) -> None:
    model = TOYS["flat"]
    ends = [ToyEngine(model, 2).run(SAMPLERS[kind].chain(model.prompt(), RandomKey(2, i, 0))) for i in range(80)]
    assert any(sample.tokens == (EOS,) for sample in ends)
    assert any(sample.ended == "length" and len(sample.tokens) == model.horizon for sample in ends)
    assert all(EOS not in sample.tokens[:-1] for sample in ends)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_stop_string_that_begins_inside_a_token_ends_an_answer(kind: str) -> None:
    """ "bc" ends within "ca" of "b" + "ca", and within "abc"; the law is that of answers that end there."""
    texts = ["", "b", "ca", "abc"]
    rule = StopStrings(("bc",), lambda tokens: "".join(texts[token] for token in tokens))

    class Spelt(ToyLM):
        def prompt(self) -> Prompt:
            return super().prompt()._replace(stopped=rule)

        def stopped(self, answer) -> bool:
            return "bc" in "".join(texts[token] for token in answer)

    model = Spelt(3, vocabulary=4, horizon=3, spread=0.5, stop=("bc",))
    assert {model.ended(x) for x in model.complete()} == {"eos", "stop", "length"}
    assert p_value(model, SAMPLERS[kind], drawn(model, SAMPLERS[kind], 600)) > 1e-3
