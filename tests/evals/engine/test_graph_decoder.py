"""GraphDecoder's logic on a CPU: rows, patches and results one step behind give what EagerDecoder gives.

The kernels are replaced by their twins, so that hundreds of requests take seconds; a smaller set of the same cases runs
over the kernels themselves in Triton's interpreter (test_kernels_triton.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from evals.rng import RandomKey
from evals.types import SamplingContext

pytest.importorskip("triton", reason="triton is not installed")
from evals.engine import batch_state
from evals.engine.chain_state import DecodeState
from evals.engine.graph_decoder import GraphDecoder
from evals.samplers.metropolis import longer, watch
from evals.samplers.power import Power
from evals.types import Cancel, Chain, Drop, Keep, Prompt, Steps, Submit
from support import twins
from support.decoder_cases import answers, assert_same, doubled, lagging, state
from support.law import paper
from support.pages import audit
from support.tiny_models import Pair, branching, engine, make, prompt, request, run_one, sample, single


@pytest.fixture(autouse=True, scope="module")
def kernels() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        twins.install(patch)
        yield


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("llama", seed=1)


# --- whole samplers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "slots"), [("llama", 1), ("llama", 3), ("llama", 8), ("gemma2", 3)])
def test_power_chains_get_the_same_answers(family: str, slots: int) -> None:
    """Prompts of 1 to 70 tokens that share pages; EOS, limits, proposals given up or ahead, rewinds, restores."""
    pair = make(family, seed=1)
    prompts = branching([1, 5, 16, 17, 40, 41, 70, 33], 33, max_new=24, eos=[2, 3, 4])

    def steps(index: int, to: Prompt) -> Steps:
        return Power(2.0, 8).chain(to, RandomKey(5, index, 0), SamplingContext(4))

    ours = answers(lagging(pair, slots), prompts, steps)
    theirs = answers(engine(pair.model, slots), prompts, steps)
    assert assert_same(pair, ours, theirs) > 5 * len(prompts)
    endings = {found.ended for found in ours.log.values()}
    assert endings >= {"eos", "length", "given_up"}


def test_truncated_draws_get_the_same_answers(pair: Pair) -> None:
    prompts = branching([5, 12, 20], 5, max_new=24, eos=[2])

    def steps(index: int, to: Prompt) -> Steps:
        return paper(8, 2.0, 3, top_k=5 if index else 0).chain(to, RandomKey(2, index, 0))

    ours, theirs = (answers(on, prompts, steps) for on in (lagging(pair, 2), engine(pair.model, 2)))
    assert assert_same(pair, ours, theirs) > 20


@pytest.mark.parametrize("prefill_tokens", [16, 50, 4096])
def test_prompts_are_written_in_packed_passes(pair: Pair, prefill_tokens: int) -> None:
    """Passes that cut prompts, and passes of so many runs that they take a larger size."""
    prompts = branching([100, 101, 41, 1, 2, 60, *[3, 5, 18] * 8], 40, max_new=6)
    on = lagging(pair, slots=len(prompts), prefill_tokens=prefill_tokens)

    def steps(index: int, to: Prompt) -> Steps:
        return single(request(to, alpha=1.0, key=(8, index, 0, 0)))

    theirs = answers(engine(pair.model, len(prompts)), prompts, steps)
    assert assert_same(pair, answers(on, prompts, steps), theirs) == len(prompts)


# --- what ends requests -----------------------------------------------------------------------------------------------


def script(index: int, to: Prompt) -> Any:
    """All that a chain can ask for, in one that goes on whatever comes."""
    asked = [request(to, key=(8, index, tag, 0), alpha=alpha) for tag, alpha in enumerate((1.0, np.inf))]
    operations: list[Any] = [Submit(tag, one) for tag, one in enumerate(asked)]
    ended: dict[Any, Any] = {}
    while len(ended) < 2:
        tag, found = yield operations
        ended[tag], operations = found, []
    first, tokens = ended[0], to.token_ids + ended[0].tokens
    cut = len(to.token_ids) + len(first.tokens) // 2
    fields = {"prefix": tokens[:cut], "parent": first.handle}
    second = request(to, key=(8, index, 2, 0), exclude=tokens[min(cut, len(tokens) - 1)], **fields)
    (_, found) = yield [Drop(ended[1].handle), Submit(2, second)]
    low = request(to, key=(8, index, 3, 0), give_up=lambda: watch(-3.0, cut, longer), **fields)
    long = request(to, key=(8, index, 4, 0), **fields)
    (tag, other) = yield [Drop(found.handle), Submit(3, low), Submit(4, long)]
    # whichever is later is given up in its last step
    tag, late = yield [Cancel(7 - tag)]
    assert late.ended == "cancelled"
    yield [Keep(other.handle)]
    (_, found) = yield [Submit(5, request(to, 1, key=(8, index, 5, 0), prefix=tokens[: cut - 1], parent=other.handle))]
    return sample(found)


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("rules", [{}, {"stopped": doubled}, {"eos": range(3, 30)}])
def test_scripts_get_the_same_answers(pair: Pair, slots: int, rules: dict[str, Any]) -> None:
    """Exclusion, greedy draws, requests given up, cancels; stop strings, and more EOS ids than the device knows."""
    prompts = branching([4, 9, 17, 30, 21], 10, max_new=25, **rules)
    ours, theirs = (answers(on, prompts, script) for on in (lagging(pair, slots), engine(pair.model, slots)))
    assert assert_same(pair, ours, theirs) >= 5 * len(prompts)
    endings = {found.ended for found in ours.log.values()}
    assert endings >= {"length", "cancelled", "stop" if "stopped" in rules else "eos" if rules else "given_up"}


def test_requests_that_give_way_start_again(pair: Pair) -> None:
    """Speculative requests of the first chain run until the others come, and are preempted in mid-sentence."""
    gaps = iter(range(100))

    def steps(index: int, to: Prompt) -> Any:
        operations: list[Any] = [Submit(tag, request(to, 8 + tag, key=(8, index, tag, 0))) for tag in range(5)]
        for _ in range(5):
            _, found = yield operations
            operations = [Drop(found.handle)]
            if next(gaps) == 0:
                late.extend(on.submit(Chain(to, single(request(to, 9, key=(i, 9))))) for i in range(4))
        return sample()

    prompts = branching([9, 20], 4, max_new=20)
    for on in (lagging(pair, 4), engine(pair.model, 4)):
        gaps, late = iter(range(100)), []
        log = answers(on, prompts, steps)
        assert on.counters().preempted_requests > 0
        if isinstance(on._decoder, GraphDecoder):
            ours, lates = log, late
    assert assert_same(pair, ours, log) == 10
    for one, other in zip(lates, late, strict=True):
        assert one.result().tokens == other.result().tokens


def test_chains_that_fail_leave_rows_and_pages_to_others(pair: Pair) -> None:
    on = lagging(pair, 2)
    to = prompt(1, 9, max_new=30)

    def broken(answer: Any) -> bool:
        if len(answer) == 7:
            raise KeyError("a stop rule that fails")
        return False

    with pytest.raises(KeyError):
        on.run([Chain(to._replace(stopped=broken), single(request(to))), Chain(to, single(request(to)))])
    assert on.counters().kv_pages_used == 0
    found = run_one(on, request(to), to, 1)
    assert found.tokens == run_one(engine(pair.model), request(to), to, 1).tokens


# --- the device's side ------------------------------------------------------------------------------------------------


def scheduled(on: Any, to: Prompt, max_new: int, eos: int) -> DecodeState:
    """A request in pages of its own, of which the host does not keep up."""
    asked = request(to, max_new, alpha=np.inf)
    slot = DecodeState(asked, to._replace(eos_ids=frozenset([eos])))
    slot.allocation = on._pool.open(None, 0, len(asked.prefix) + max_new)
    on._decoder.cache.prepare([slot.allocation])
    return slot


def idle(known: list[torch.Tensor], row: int) -> bool:
    """Whether a row feeds token 0 at position 0 of the scratch page and draws nothing."""
    scalars, keys, table = known
    free = scalars[:, row].clone()
    free[batch_state.EXCLUDE] = 0
    return not (free.any() or keys[row].any() or table[row].any())


@pytest.mark.parametrize("by", ["limit", "eos"])
@torch.inference_mode()
def test_a_row_that_is_over_stands_still(pair: Pair, by: str) -> None:
    """However late the host hears of it: same token, same position, no other key touched."""
    to = prompt(3, 1)
    free = run_one(engine(pair.model), request(to, 12, alpha=np.inf), to)
    number = 4 if by == "limit" else next(i for i, t in enumerate(free.tokens) if t not in free.tokens[:i] and i > 2)
    on = lagging(pair, 2)
    decoder: Any = on._decoder
    cache = decoder.cache
    running = scheduled(on, to, number if by == "limit" else 30, -1 if by == "limit" else free.tokens[number])
    drawn = [decoder.step([running]) for _ in range(number + 3)]
    before, keys = state(decoder), cache.tensor.clone()
    drawn += [decoder.step([running]) for _ in range(5)]
    over = number + (by == "eos")
    assert drawn[0] == []
    assert [token for ((_, token, *_),) in drawn[1 : over + 1]] == list(free.tokens[:over])
    assert len({token for ((_, token, *_),) in drawn[over:]}) == 1
    for one, other in zip(before, state(decoder), strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(cache.tensor, keys, atol=1e-6, rtol=0)
    assert idle(before, 1)


def test_chains_cancelled_a_step_ahead_leave_rows_and_pages_to_others(pair: Pair) -> None:
    """The device has drawn one more token for them, which nobody may take for another's."""
    prompts = branching([9, 20, 12, 30, 5, 14, 8, 25], 4, max_new=20)

    def chain(number: int, moves: int) -> Chain:
        to = prompts[number % 8]
        return Chain(to, Power(2.0, moves).chain(to, RandomKey(8, number, 0), SamplingContext(prefetch=2)))

    on = lagging(pair, 3)
    kept = {number: on.submit(chain(number, 3)) for number in range(0, 12, 3)}
    endless = {number: on.submit(chain(number, 1000)) for number in range(12) if number % 3}
    for number, future in endless.items():
        for _ in range(1 + number % 4):
            on._take()
            on._step()
        future.cancel()
    while on._take():
        on._step()
    expected = engine(pair.model, 3).run([chain(number, 3) for number in kept])
    assert [future.result().tokens for future in kept.values()] == [one.tokens for one in expected]
    assert (on.counters().cancelled_chains, on.counters().kv_pages_used) == (8, 0)
    audit(on._pool)


def test_freed_rows_write_to_the_scratch_page_only(pair: Pair) -> None:
    on = lagging(pair, 4)
    to = prompt(5, 20, max_new=10)
    on.run([Chain(to, single(request(to, 2 + i, key=(i, 0, 0)))) for i in range(4)])
    decoder: Any = on._decoder
    decoder.step([])
    assert all(idle(state(decoder), row) for row in range(4))
