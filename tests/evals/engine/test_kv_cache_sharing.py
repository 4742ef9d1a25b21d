"""Prompts that share pages: found by their tokens, written once, and not a bit of any result different for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from evals.engine.eager_decoder import Chunk, layout, prompt_passes
from evals.engine.engine import Engine
from evals.engine.kv_cache import PAGE, PrefixIndex
from evals.rng import RandomKey
from evals.samplers.power import Power
from evals.types import Chain, Completion, Drop, Prompt, Submit
from support.figures import figures
from support.pages import audit
from support.tiny_models import (
    PACKED,
    Pair,
    assert_statistics,
    branching,
    cache_of,
    engine,
    make,
    prompt,
    request,
    run_one,
    sample,
    single,
)

CHUNK = 64


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("llama", seed=1)


def beyond(shared: int, lengths: list[int]) -> list[Prompt]:
    """Prompts that have their first `shared` tokens in common and so many of their own."""
    return branching([shared + length for length in lengths], shared, max_new=12)


def together(on: Engine, prompts: list[Prompt], first: int = 0) -> list[Completion]:
    """Of every prompt an answer, keyed by its place counted from `first`."""
    chains = [Chain(to, single(request(to, key=(i, 0, 0)))) for i, to in enumerate(prompts, first)]
    return [figures(found).completion for found in on.run(chains)]


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_bits_with_and_without_sharing(family: str, threads: int) -> None:
    """Rests of 0 to 70 tokens beyond one and two chunks, some prompts twice; alone, at once, one after the other."""
    prompts = beyond(64, [1, 1, 2, 9, 37, 66]) + beyond(128, [1, 2, 3, 40]) + beyond(20, [3, 30, 13])
    prompts += prompts[3:6] + prompts[-4:]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = make(family, seed=1).model
        alone = [together(engine(model, max_length=250), [to], i)[0] for i, to in enumerate(prompts)]
        others = [together(engine(model, slots, max_length=250), prompts) for slots in (1, 3, 20)]
    finally:
        torch.set_num_threads(before)
    for results in others:
        for one, other in zip(alone, results, strict=True):
            assert one.tokens != ()
            assert one.log_q.tobytes() == other.log_q.tobytes()
            assert one.log_z.tobytes() == other.log_z.tobytes()
            assert one.tokens == other.tokens
    assert [one.prefilled for one in alone] == [len(to.token_ids) - 1 for to in prompts]
    assert sum(found.prefilled for found in others[2]) < sum(found.prefilled for found in alone)
    assert [found.prefilled for found in others[2][13:]] == [0] * 7
    assert len({found.tokens for found in others[2]}) == len(prompts)


def test_statistics_are_those_of_a_plain_pass(pair: Pair) -> None:
    prompts = beyond(100, [3, 30, 50])
    for to, found in zip(prompts, together(engine(pair.model, max_length=200), prompts), strict=True):
        assert_statistics(pair, to.token_ids, found, 2.0)


@pytest.mark.parametrize("prefill_tokens", [16, 50, 4096])
def test_packed_passes_share_single_pages(pair: Pair, prefill_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: passes of many prompts, and pages shared one by one."""
    monkeypatch.setattr("evals.engine.engine.layout", lambda device: PACKED)
    prompts = beyond(40, [1, 5, 30, 60]) + beyond(100, [7, 8])
    on = engine(pair.model, slots=6, max_length=200, prefill_tokens=prefill_tokens)
    found = together(on, prompts)
    for to, one in zip(prompts, found, strict=True):
        assert_statistics(pair, to.token_ids, one, 2.0)
    assert [one.prefilled for one in found] == [40, 44 - 32, 69 - 32, 99 - 32, 106 - 32, 107 - 96]
    assert on.counters().prefilled_tokens == sum(one.prefilled for one in found)


# --- what is run ------------------------------------------------------------------------------------------------------


def test_the_prompt_of_several_samples_is_prefilled_once(pair: Pair) -> None:
    to = prompt(1, 100)
    for slots in (4, 2):
        on = engine(pair.model, slots)
        samples = on.run([Chain(to, Power(2.0, 4).chain(to, RandomKey(1, 7, i))) for i in range(4)])
        assert on.counters().prefilled_tokens == 99
        assert [figures(s).prefilled for s in samples] == [99, 0, 0, 0]
        assert len({s.tokens for s in samples}) > 1


def test_power_chains_prefill_prompts_only(pair: Pair) -> None:
    """No rewind, no restore and no accepted proposal costs a token of prefill."""
    on = engine(pair.model, slots=3)
    prompts = [prompt(i, 5 + 9 * i, max_new=30, eos=[2]) for i in range(8)]
    samples = on.run([Chain(to, Power(2.0, 12).chain(to, RandomKey(1, i, 0))) for i, to in enumerate(prompts)])
    assert sum(figures(s).accepted for s in samples) > 5
    assert sum(figures(s).moves - figures(s).null - figures(s).accepted for s in samples) > 5
    assert on.counters().prefilled_tokens == sum(len(to.token_ids) - 1 for to in prompts)


def test_candidates_of_one_chain_share_their_prompt(pair: Pair) -> None:
    to = prompt(2, 130)
    found: dict[Any, Completion] = {}

    def script() -> Any:
        operations: list[Any] = [Submit(tag, request(to, 10, key=(0, 0, tag))) for tag in range(6)]
        while len(found) < 6:
            tag, one = yield operations
            found[tag] = one
            operations = [Drop(one.handle)]
        return sample()

    on = engine(pair.model, slots=6, max_length=200)
    on.run([Chain(to, script())])
    assert [found[tag].prefilled for tag in range(6)] == [129, 0, 0, 0, 0, 0]
    for tag, one in found.items():
        alone = run_one(engine(pair.model, max_length=200), request(to, 10, key=(0, 0, tag)), to)
        assert alone.log_q.tobytes() == one.log_q.tobytes()


def test_what_nobody_owns_any_more_is_not_found(pair: Pair) -> None:
    on = engine(pair.model)
    to = prompt(3, 100)
    for _ in range(2):
        assert run_one(on, request(to, 5), to).prefilled == 99
    audit(on._pool)
    assert on.counters().kv_pages_used == 0


def test_a_prompt_that_fails_leaves_nothing_to_be_found(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages may hold NaN."""
    on = engine(pair.model, slots=2)
    to = prompt(4, 100)
    plain = pair.model.forward

    def poisoned(step: Any) -> torch.Tensor:
        logits = plain(step)
        cache_of(on).fill(range(1, on._pool.num_pages), torch.nan)
        return torch.full_like(logits, torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(pair.model, "forward", poisoned)
        with pytest.raises(FloatingPointError):
            run_one(on, request(to, 5), to)
    assert np.isfinite(run_one(on, request(to, 5), to).log_q).all()


# --- passes and index -------------------------------------------------------------------------------------------------


def test_nothing_is_read_before_an_earlier_pass_has_written_it() -> None:
    header = (7, 8, 9)
    prompts = [
        Chunk(range(60), 0, (*header, 1)),
        Chunk(range(10), 3 * PAGE, (*header, 2)),
        Chunk(range(10), 3 * PAGE, (*header, 3)),
        Chunk((), 3 * PAGE, (*header, 4)),
    ]
    starts = [[(run.start, len(run.tokens)) for run in runs] for runs in prompt_passes(prompts, PACKED, 100)]
    assert starts == [[(0, 60)], [(48, 10), (48, 10)]]
    starts = [[(run.start, len(run.tokens)) for run in runs] for runs in prompt_passes(prompts, PACKED, 50)]
    assert starts == [[(0, 50)], [(50, 10), (48, 10), (48, 10)]]


def test_passes_on_a_cpu_are_cut_at_fixed_positions() -> None:
    shape = layout(torch.device("cpu"))
    prompts = [Chunk(range(150), 0, tuple(range(1, 11))), Chunk(range(20), 128, (1, 2, 3, 4, 5, 6, 7, 8, 11, 12))]
    passes = [[(run.start, len(run.tokens)) for run in runs] for runs in prompt_passes(prompts, shape, 16)]
    assert passes == [[(0, 64)], [(64, 64)], [(128, 22)], [(128, 20)]]
    assert shape.share_unit * PAGE == CHUNK


def test_the_index_finds_whole_units_and_whole_prompts_and_forgets() -> None:
    index = PrefixIndex(2, unit=2)
    index.add(range(11), [5, 6, 7, 8, 9])  # two units of two pages; the page of the last token is missing
    assert index.find(range(11)) == [5, 6, 7, 8]
    assert index.find(range(7)) == [5, 6]
    assert index.find([0, 1, 2, 4]) == []
    assert index.find([4, 5, 6, 7]) == []  # the same tokens elsewhere are something else
    index.add([0, 1, 2, 3, 9, 9, 9, 9], [5, 6, 1, 2])
    assert index.find([0, 1, 2, 3, 9, 9, 9, 9, 9]) == [5, 6, 1, 2]
    index.add(range(7), [5, 6, 3, 4])  # the last unit is what is left of the prompt, written in a pass of its own
    assert index.find(range(7)) == [5, 6, 3, 4]
    assert index.find(range(6)) == index.find([*range(6), 9]) == [5, 6]
    index.add(range(7), [5, 6, 3, 10])  # another's copy of the last page
    assert set(index._key) == {5, 6, 7, 8, 9, 1, 2, 3, 4, 10}
    index.forget(4)
    assert index.find(range(7)) == [5, 6, 3, 10]
    index.forget(10)
    assert index.find(range(7)) == [5, 6]
    index.forget(8)
    index.forget(8)
    assert index.find(range(11)) == [5, 6]
