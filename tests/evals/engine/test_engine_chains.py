"""Chains on the engine: any number of slots, several requests at once, sharing, cancelling, and what fails."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evals.engine.engine import CLOSED, Engine
from evals.rng import RandomKey
from evals.samplers.power import Power
from evals.types import Cancel, Chain, Completion, Drop, Keep, Operation, Prompt, Sample, Submit, UserError
from support.figures import figures
from support.pages import audit
from support.tiny_models import (
    Pair,
    assert_statistics,
    cache_of,
    engine,
    make,
    prompt,
    request,
    run_one,
    sample,
    single,
)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("llama", seed=1)


def power_chains(count: int, moves: int = 3) -> list[Chain]:
    """Prompts of 3, 12, 21 tokens and so on: the eighth is longer than a chunk."""
    prompts = [prompt(i, length=3 + 9 * i, max_new=40, eos=[2, 7]) for i in range(count)]
    return [Chain(to, Power(2.0, moves).chain(to, RandomKey(1, i, 0))) for i, to in enumerate(prompts)]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("packed", [True, False])
def test_the_same_bits_for_any_number_of_slots(
    packed: bool, family: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ordinary products, which processors without packed ones use, give other bits for 1 to 3 rows than for more."""
    if not packed:
        monkeypatch.setattr("evals.engine.execution.pack_linears", lambda network: None)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = make(family, seed=1).model
        results = [engine(model, slots).run(power_chains(9)) for slots in (1, 3, 8)]
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one.tokens == two.tokens
            assert one.log_q.tobytes() == two.log_q.tobytes()
            assert one.log_z.tobytes() == two.log_z.tobytes()
            assert one.chain == two.chain


def test_several_requests_of_one_chain_and_branches_of_one_parent(pair: Pair) -> None:
    """Arrivals come one at a time; branches that share pages do not disturb each other or their parent."""
    on = engine(pair.model, slots=3)
    to = prompt(1, 20)
    arrivals = []

    def script() -> Any:
        (_, trunk) = yield [Submit("trunk", request(to, 30))]
        tokens = to.token_ids + trunk.tokens
        cuts = (21, 28, 33, 40, 49)
        got = yield [
            Submit(cut, request(to, 5 + cut % 7, prefix=tokens[:cut], parent=trunk.handle, key=(0, 0, cut)))
            for cut in cuts
        ]
        arrivals.append(got)
        yield_all = len(cuts) - 1
        while yield_all:
            got = yield []
            arrivals.append(got)
            yield_all -= 1
        (_, again) = yield [Submit("again", request(to, 30))]
        assert again.tokens == trunk.tokens
        for cut, found in arrivals:
            assert_statistics(pair, tokens[:cut], found, 2.0)
        return sample(trunk)

    on.run([Chain(to, script())])
    assert {cut for cut, _ in arrivals} == {21, 28, 33, 40, 49}
    assert on.counters().kv_pages_used == 0
    audit(on._pool)


def test_a_parent_may_be_dropped_once_its_child_is_submitted(pair: Pair) -> None:
    on = engine(pair.model, slots=1)
    to = prompt(2, 18)

    def script() -> Any:
        (_, first) = yield [Submit(0, request(to, 30))]
        prefix = to.token_ids + first.tokens[:20]
        child = request(to, 20, prefix=prefix, parent=first.handle)
        (_, found) = yield [Submit(1, child), Drop(first.handle)]
        yield [Keep(found.handle)]  # its parent is gone already, which is fine
        assert_statistics(pair, prefix, found, 2.0)
        return sample(found)

    assert on.run([Chain(to, script())])[0].tokens
    assert on.counters().kv_pages_used == 0


def test_keep_releases_the_parent_and_drop_the_proposal(pair: Pair) -> None:
    on = engine(pair.model)
    to = prompt(3, 40)
    used = []

    def script() -> Any:
        (_, state) = yield [Submit(0, request(to, 40))]
        for move in range(1, 7):
            prefix = to.token_ids + state.tokens[:10]
            (_, proposal) = yield [Submit(move, request(to, 30, prefix=prefix, parent=state.handle, key=(0, 0, move)))]
            if move % 2:
                yield [Keep(proposal.handle)]
                state = proposal._replace(tokens=state.tokens[:10] + proposal.tokens)
            else:
                yield [Drop(proposal.handle)]
            used.append(on.counters().kv_pages_used)
        return sample(state)

    on.run([Chain(to, script())])
    assert used == [5] * 6  # 80 tokens and nothing else


def test_cancel_waiting_and_running(pair: Pair) -> None:
    on = engine(pair.model, slots=2)
    to = prompt(4)
    got: dict[Any, Any] = {}

    def script() -> Any:
        arrival = yield [Submit(tag, request(to, new, key=(0, 0, tag))) for tag, new in enumerate((3, 40, 40, 40))]
        while True:
            tag, found = arrival
            got[tag] = found
            if len(got) == 4:
                return sample(found)
            arrival = yield [Cancel(1), Cancel(3)] if len(got) == 1 else []

    on.run([Chain(to, script())])
    assert (got[0].ended, got[2].ended) == ("length", "length")
    assert (got[1].ended, len(got[1].tokens), got[1].handle) == ("cancelled", 2, None)
    assert (got[3].ended, got[3].tokens, got[3].handle) == ("cancelled", (), None)
    assert on.counters().kv_pages_used == 0
    audit(on._pool)


def speculating(to: Prompt, problem: int, ahead: int, moves: int) -> Any:
    """Moves one after the other, `ahead` more of them in flight as if the earlier ones were rejected."""
    (_, found) = yield [Submit(0, request(to, key=(1, problem, 0, 0)))]
    answer, handle, trace, version = found.tokens, found.handle, [found], 0
    operations: list[Operation] = []
    in_flight: set[int] = set()
    done: dict[int, Completion] = {}
    for move in range(1, moves + 1):
        for later in range(move, min(move + ahead, moves) + 1):
            if later not in in_flight and later not in done:
                cut = later * 7 % len(answer)
                asked = request(
                    to, to.max_new_tokens - cut, prefix=to.token_ids + answer[:cut], key=(1, problem, 0, later)
                )  # fmt: skip
                operations.append(Submit((version, later), asked._replace(parent=handle)))
                in_flight.add(later)
        while move not in done:
            (of, later), found = yield operations
            operations = []
            if of == version:
                in_flight.discard(later)
                done[later] = found
        proposal = done.pop(move)
        assert proposal.handle is not None
        trace.append(proposal)
        if sum(proposal.tokens) % 3:
            operations.append(Drop(proposal.handle))
            continue
        answer, handle = answer[: move * 7 % len(answer)] + proposal.tokens, proposal.handle
        operations += [Keep(handle), *(Drop(d.handle) for d in done.values() if d.handle is not None)]
        operations += [Cancel((version, later)) for later in in_flight]
        version += 1
        in_flight, done = set(), {}
    return sample(trace=[(c.tokens, c.log_q.tobytes(), c.log_z.tobytes(), c.ended) for c in trace])


def test_the_same_bits_with_and_without_further_requests_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any number of slots, with preempted speculative requests, and with NaN in every page that is free."""
    model = make("llama", seed=1).model
    prompts = [prompt(i // 2, 5 + 40 * (i // 2), 30, eos=[2, 7]) for i in range(7)]
    plain, on = model.forward, engine(model, slots=1)

    def forward(step: Any) -> torch.Tensor:
        cache_of(on).fill(on._pool._free, torch.nan)
        return plain(step)

    monkeypatch.setattr(model, "forward", forward)
    found, preempted = [], 0
    for slots, ahead in [(1, 0), (3, 0), (8, 0), (3, 1), (8, 4)]:
        on = engine(model, slots)
        chains = [Chain(to, speculating(to, i, ahead, 6)) for i, to in enumerate(prompts)]
        futures = [on.submit(chain) for chain in chains[:3]]
        chains[3].steps.close()
        chains[3] = Chain(prompts[3], late(on, chains[4:], futures, speculating(prompts[3], 3, ahead, 6)))
        futures.append(on.submit(chains[3]))
        on.run([])
        found.append([figures(future.result()).trace for future in futures])
        preempted += on.counters().preempted_requests
        assert on.counters().kv_pages_used == 0
        audit(on._pool)
    assert preempted > 0
    assert all(other == found[0] for other in found[1:])


def late(on: Engine, chains: list[Chain], futures: list[Future[Sample]], steps: Any) -> Any:
    """Runs `steps`, and hands in other chains once it has its third arrival."""
    arrival = None
    for count in range(1_000):
        if count == 3:
            futures += [on.submit(chain) for chain in chains]
        try:
            arrival = yield steps.send(arrival)
        except StopIteration as stop:
            return stop.value
    raise AssertionError("the chain does not end")


def test_a_chain_without_requests_ends_at_once(pair: Pair) -> None:
    def script() -> Any:
        if False:
            yield []
        return sample(answer=42)

    assert engine(pair.model).run([Chain(prompt(), script())])[0].chain == SimpleNamespace(answer=42)


# --- what fails -------------------------------------------------------------------------------------------------------


def outcomes(on: Engine, chains: list[Chain], seed: int = 1) -> list[Sample | BaseException]:
    """Results of chains of which some fail, each by itself."""
    futures = [on.submit(chain) for chain in chains]
    on.start()
    return [future.exception(timeout=60) or future.result() for future in futures]


def broken(to: Any, error: BaseException) -> Any:
    """A chain that holds a sequence, has one in flight, and raises."""
    (_, found) = yield [Submit(0, request(to, 5))]
    yield [Submit(1, request(to, 4, key=(0, 0, 1))), Submit(2, request(to, 90, parent=found.handle))]
    raise error


def test_an_error_in_a_chain_is_its_own(pair: Pair) -> None:
    alone = engine(pair.model).run(power_chains(4))
    on = engine(pair.model, slots=3)
    to = prompt(5)
    error = KeyError("mine")
    chains = power_chains(4)
    chains.insert(1, Chain(to, broken(to, error)))
    result = outcomes(on, chains)
    on.close()
    assert result.pop(1) is error
    assert [r.tokens for r in result if isinstance(r, Sample)] == [s.tokens for s in alone]
    assert on.counters().kv_pages_used == 0
    audit(on._pool)


def test_misuse_of_operations_fails_the_chain(pair: Pair) -> None:
    to = prompt(6)

    def twice() -> Any:
        yield [Submit(0, request(to)), Submit(0, request(to))]

    def foreign() -> Any:
        yield [Drop(5)]  # type: ignore[arg-type]

    def nothing() -> Any:
        yield []

    def unknown() -> Any:
        yield [Cancel("no such tag")]

    def nonsense() -> Any:
        yield ["word"]

    scripts = [twice, foreign, nothing, unknown, nonsense]
    on = engine(pair.model)
    result = outcomes(on, [Chain(to, script()) for script in scripts])
    on.close()
    texts = ["in flight already", "does not hold", "nothing in flight", "no such tag", "no operation"]
    for error, text in zip(result, texts, strict=True):
        assert text in str(error)
    assert on.counters().kv_pages_used == 0


def test_a_stop_rule_that_raises_fails_its_chain(pair: Pair) -> None:
    def stopped(answer: Any) -> bool:
        raise OSError("no dictionary")

    to = prompt(7, stopped=stopped)
    on = engine(pair.model)
    result = outcomes(on, [Chain(to, single(request(to))), *power_chains(1)])
    on.close()
    assert isinstance(result[0], OSError)
    assert isinstance(result[1], Sample)


def test_logits_that_are_not_numbers_fail_one_chain_and_poison_no_other(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of the failed chain are NaN when its pages are lent out again."""
    alone = engine(pair.model, slots=2).run(power_chains(6))
    on = engine(pair.model, slots=2)
    plain, calls = pair.model.forward, []

    def forward(step: Any) -> torch.Tensor:
        logits = plain(step)
        calls.append(step)
        if len(calls) == 6:
            cache_of(on).fill(on._runner.scheduler.slots[0].pages, torch.nan)
            logits[0] = torch.nan
        return logits

    monkeypatch.setattr(pair.model, "forward", forward)
    result = outcomes(on, power_chains(6))
    on.close()
    failed = [i for i, r in enumerate(result) if not isinstance(r, Sample)]
    assert len(failed) == 1
    assert isinstance(result[failed[0]], FloatingPointError)
    for i, r in enumerate(result):
        assert i in failed or (isinstance(r, Sample) and r.tokens == alone[i].tokens)


def test_an_error_of_the_engine_reaches_every_future_and_is_not_lost(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = engine(pair.model, slots=2)
    error = RuntimeError("device on fire")
    count = 0
    plain = pair.model.forward

    def forward(step: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 5:
            raise error
        return plain(step)

    monkeypatch.setattr(pair.model, "forward", forward)
    assert outcomes(on, power_chains(5)) == [error] * 5
    with pytest.raises(RuntimeError, match="has failed") as caught:
        on.submit(power_chains(1)[0])
    assert caught.value.__cause__ is error
    with pytest.raises(RuntimeError, match="device on fire"):
        on.close()


def test_run_raises_the_engines_error(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    on = engine(pair.model)

    def forward(step: Any) -> torch.Tensor:
        raise RuntimeError("device on fire")

    monkeypatch.setattr(pair.model, "forward", forward)
    with pytest.raises(RuntimeError, match="device on fire"):
        on.run(power_chains(2))


def test_a_request_that_no_page_will_ever_come_free_for(pair: Pair) -> None:
    """The chain holds the pool; alone it fails with numbers, in company it waits for the others first."""
    to = prompt(8, 16)

    def hoard(total: int) -> Any:
        for tag in range(total):
            yield [Submit(tag, request(to, 30, key=(0, 0, tag)))]
        return sample()

    on = engine(pair.model, num_pages=9)
    result = outcomes(on, [Chain(to, hoard(5)), Chain(to, single(request(to, 30))), Chain(to, hoard(2))])
    on.close()
    assert isinstance(result[0], RuntimeError)
    assert "needs 3 pages of keys and values" in str(result[0])
    assert isinstance(result[1], Sample)
    assert isinstance(result[2], Sample)
    assert on.counters().kv_pages_used == 0


def test_a_chain_larger_than_the_pool_is_refused(pair: Pair) -> None:
    on = engine(pair.model, num_pages=6)
    to = prompt(9, 16, max_new=60)
    message = "room for 2 sequences at once, 10 pages of keys and values, and there are 5; take fewer candidates"
    with pytest.raises(UserError, match=message):
        run_one(on, request(to), to)
    assert on.counters().kv_pages_used == 0
    assert len(on.run([Chain(to, single(request(to)), sequences=1)])[0].tokens) == 60


def test_a_request_longer_than_its_chain_said_fails_where_the_pool_cannot_hold_it(pair: Pair) -> None:
    on = engine(pair.model, num_pages=7)
    to = prompt(9, 16, max_new=20)
    with pytest.raises(RuntimeError, match=r"needs 7 pages of keys.*holds more than the 2 sequences, 6 pages"):
        run_one(on, request(to, 90), to)
    assert on.counters().kv_pages_used == 0


def test_a_small_pool_gives_the_same_tokens(pair: Pair) -> None:
    alone = engine(pair.model, slots=4).run(power_chains(8))
    on = engine(pair.model, slots=4, num_pages=24)
    assert [s.tokens for s in on.run(power_chains(8))] == [s.tokens for s in alone]


# --- the thread -------------------------------------------------------------------------------------------------------


def test_chains_may_come_from_several_threads(pair: Pair) -> None:
    alone = engine(pair.model).run(power_chains(9))
    on = engine(pair.model, slots=4)
    on.start()
    chains, futures = power_chains(9), {}

    def hand_in(indices: range) -> None:
        for i in indices:
            futures[i] = on.submit(chains[i])

    threads = [threading.Thread(target=hand_in, args=(range(k, 9, 3),)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [futures[i].result(timeout=60).tokens for i in range(9)] == [s.tokens for s in alone]
    counters = on.counters()
    assert counters.slots == 4
    assert counters.generated_tokens == sum(figures(s).generated for s in alone)
    assert counters.prefilled_tokens == sum(figures(s).prefilled for s in alone)
    assert counters.step_seconds > 0
    on.close()


def test_close_fails_what_is_pending_and_refuses_more(pair: Pair) -> None:
    on = engine(pair.model, slots=1)
    started = threading.Event()
    to = prompt(10)

    def endless() -> Any:
        move = 0
        while True:
            (_, found) = yield [Submit(move, request(to, 3, key=(0, 0, move)))]
            yield [Drop(found.handle)]
            started.set()
            move += 1

    futures: list[Future[Sample]] = [on.submit(Chain(to, endless())), *(on.submit(c) for c in power_chains(2))]
    on.start()
    assert started.wait(60)
    on.close()
    assert all(str(future.exception(timeout=60)) == CLOSED for future in futures)
    with pytest.raises(RuntimeError, match=CLOSED):
        on.submit(power_chains(1)[0])
    assert on.counters().kv_pages_used == 0


def test_a_cancelled_future_never_starts(pair: Pair) -> None:
    on = engine(pair.model, slots=1)
    futures = [on.submit(chain) for chain in power_chains(3)]
    assert futures[1].cancel()
    on.start()
    assert futures[0].result(60).tokens
    assert futures[2].result(60).tokens
    on.close()
    assert futures[1].cancelled()


def test_run_and_start_exclude_each_other(pair: Pair) -> None:
    on = engine(pair.model)
    on.start()
    with pytest.raises(RuntimeError, match="use submit"):
        on.run([])
    with pytest.raises(RuntimeError, match="started already"):
        on.start()
    on.close()


@pytest.mark.parametrize(("slots", "max_length"), [(0, 100), (3, 0), (3, 257)])
def test_sizes_out_of_range(slots: int, max_length: int, pair: Pair) -> None:
    with pytest.raises(ValueError, match=f"{slots} slots, longest sequence {max_length} of 256"):
        engine(pair.model, slots, max_length)


def test_chunked_prefill_equals_a_whole_one(pair: Pair) -> None:
    to = prompt(11, 100)
    found = run_one(engine(pair.model, prefill_tokens=16), request(to, 30), to)
    assert_statistics(pair, to.token_ids, found, 2.0)
    assert np.isfinite(found.log_q).all()
