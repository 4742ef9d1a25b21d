"""Cancelled chains: gone at the next step, with slots and pages, whatever they were doing; the others never notice."""

from __future__ import annotations

import random
import threading
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import numpy as np
import pytest
import torch

from evals.engine.chain_state import ChainState
from evals.engine.eager_decoder import EagerDecoder
from evals.engine.engine import Engine
from evals.rng import RandomKey
from evals.samplers.candidates import BestOf
from evals.samplers.power import Power
from evals.types import Chain, Sample, SamplingContext
from support.pages import audit
from support.tiny_models import Pair, engine, make, prompt

ENDLESS = 100_000
PREFETCH = SamplingContext(prefetch=3)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("llama", seed=1)


def chain(number: int, moves: int = 3, max_new: int = 30, context: SamplingContext = PREFETCH) -> Chain:
    to = prompt(number, length=3 + 9 * (number % 5), max_new=max_new, eos=[2, 7])
    return Chain(to, Power(2.0, moves).chain(to, RandomKey(1, number, 0), context))


def step(on: Engine, times: int = 1) -> None:
    for _ in range(times):
        if on._take():
            on._step()


def assert_nothing_is_held(on: Engine) -> None:
    counters = on.counters()
    assert (counters.active_slots, counters.kv_pages_used) == (0, 0)
    assert on._runner.idle
    assert on._runner.scheduler.reserved == 0
    audit(on._pool)


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 40])
def test_a_chain_is_gone_at_the_first_step_after_its_cancel(pair: Pair, steps: int) -> None:
    """Before its turn, while it is prefilled, in its first answer, and with proposals that run ahead."""
    on = engine(pair.model, slots=4)
    future = on.submit(chain(0, ENDLESS))
    step(on, steps)
    assert future.cancel()
    assert not on._take()
    assert_nothing_is_held(on)
    assert on.counters().cancelled_chains == 1
    assert wait([future], 1).done  # whoever waits for several hears of it


def test_one_that_waits_for_a_slot_is_gone_and_the_next_takes_its_turn(pair: Pair) -> None:
    alone = engine(pair.model, slots=1).run([chain(0), chain(2)])
    on = engine(pair.model, slots=1)
    first, second, third = (on.submit(one) for one in (chain(0), chain(1, ENDLESS), chain(2)))
    step(on, 3)
    second.cancel()
    while on._take():
        on._step()
    assert [first.result().tokens, third.result().tokens] == [one.tokens for one in alone]
    assert_nothing_is_held(on)


def test_candidates_that_share_a_prompt_are_all_gone(pair: Pair) -> None:
    on, to = engine(pair.model, slots=4), prompt(3, length=40, max_new=30)
    future = on.submit(Chain(to, BestOf(2.0, 9).chain(to, RandomKey(1, 3, 0)), BestOf.sequences))
    step(on, 9)
    future.cancel()
    step(on)
    assert_nothing_is_held(on)


def test_a_cancel_after_the_end_and_a_second_one_do_nothing(pair: Pair) -> None:
    on = engine(pair.model)
    future = on.submit(chain(0))
    while on._take():
        on._step()
    assert not future.cancel()
    gone = on.submit(chain(1, ENDLESS))
    step(on, 2)
    assert gone.cancel()
    assert gone.cancel()
    step(on)
    assert on.counters().cancelled_chains == 1


def test_cancelled_while_the_device_is_made_anew(pair: Pair) -> None:
    """All chains wait then, holding tokens and no pages."""
    on = engine(pair.model, slots=4)
    futures = [on.submit(chain(number, ENDLESS)) for number in range(4)]
    kept = on.submit(chain(9))
    step(on, 20)
    on._resize(3, "a test")
    for future in futures:
        future.cancel()
    while on._take():
        on._step()
    [alone] = engine(pair.model).run([chain(9)])
    assert kept.result().tokens == alone.tokens
    assert_nothing_is_held(on)


@pytest.mark.parametrize("cancel_in", ["prefill", "step"])
@pytest.mark.parametrize("runs_out", [False, True])
def test_a_cancel_from_another_thread_in_the_middle_of_a_pass(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, cancel_in: str, runs_out: bool
) -> None:
    """The pass ends, or runs out of memory, which makes the device anew and has all chains wait again."""
    [alone] = engine(pair.model).run([chain(2)])
    on = engine(pair.model, slots=4)
    gone, kept = on.submit(chain(1, ENDLESS)), on.submit(chain(2))
    step(on, 5 if cancel_in == "step" else 0)
    work, calls = getattr(EagerDecoder, cancel_in), iter(range(10**6))

    def cancelling(*arguments: Any) -> Any:
        result = work(*arguments)
        if next(calls) == 0:
            thread = threading.Thread(target=gone.cancel)
            thread.start()
            thread.join(60)
            if runs_out:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return result

    monkeypatch.setattr(EagerDecoder, cancel_in, cancelling)
    step(on)
    assert gone.cancelled()
    assert on._take()
    assert on._runner.num_chains == 1
    while on._take():
        on._step()
    assert kept.result().tokens == alone.tokens
    assert on.counters().slots == (3 if runs_out else 4)
    assert_nothing_is_held(on)


def test_one_that_is_submitted_and_cancelled_while_the_engine_takes_others_does_not_run(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = engine(pair.model)
    add, late = on._runner.add, list[Future[Sample]]()

    def add_and_hear_of_another(state: ChainState) -> None:
        add(state)
        if not late:
            late.append(on.submit(chain(1, ENDLESS)))
            late[0].cancel()

    monkeypatch.setattr(on._runner, "add", add_and_hear_of_another)
    kept = on.submit(chain(0))
    step(on, 2)
    assert on._runner.num_chains == 1
    while on._take():
        on._step()
    assert kept.done()
    assert_nothing_is_held(on)


def test_an_engine_with_a_thread_counts_cancels_at_once_and_answers_the_next(pair: Pair) -> None:
    on = engine(pair.model)
    on.start()
    for number in range(20):
        on.submit(chain(number, ENDLESS)).cancel()
    assert on.counters().cancelled_chains == 20
    [alone] = engine(pair.model).run([chain(3)])
    assert on.submit(chain(3)).result(60).tokens == alone.tokens
    on.close()
    assert_nothing_is_held(on)


def test_a_cancel_in_the_step_that_ends_the_chain_raises_nothing(pair: Pair) -> None:
    on = engine(pair.model)
    future = Future[Sample]()

    class Ends(Power):
        def chain(self, *given: object, **how: object):  # type: ignore[no-untyped-def]
            sampled = yield from super().chain(*given, **how)  # type: ignore[arg-type]
            future.cancel()
            return sampled

    to = prompt(0, max_new=5)
    future = on.submit(Chain(to, Ends(2.0, 1).chain(to, RandomKey(1, 0, 0))))
    while on._take():
        on._step()
    assert future.cancelled()
    assert on.counters().cancelled_chains == 1
    assert_nothing_is_held(on)


def test_close_ends_cancelled_and_other_chains(pair: Pair) -> None:
    on = engine(pair.model)
    on.start()
    futures = [on.submit(chain(number, ENDLESS)) for number in range(9)]
    for future in futures[::2]:
        future.cancel()
    on.close()
    assert not any(future.cancel() for future in futures[1::2])
    assert on.counters().cancelled_chains == 5
    assert [type(error(future)) for future in futures] == [CancelledError, RuntimeError] * 4 + [CancelledError]


def error(future: Future) -> BaseException | None:
    try:
        return future.exception(60)
    except CancelledError as cancelled:
        return cancelled


def test_ten_thousand_submits_and_cancels_leave_nothing_and_change_no_answer(pair: Pair) -> None:
    """From several threads, in random order, with slots and pages that are too few for all."""
    kept = range(0, 10_000, 100)
    expected = engine(pair.model, slots=16).run([chain(number, 1, 6) for number in kept])
    on = engine(pair.model, slots=6, num_pages=40)
    on.start()
    futures: dict[int, Future[Sample]] = {}

    def client(part: int) -> None:
        draws, own = random.Random(part), list[Future[Sample]]()
        for number in range(part, 10_000, 4):
            if number % 100 == 0:
                futures[number] = on.submit(chain(number, 1, 6))
                continue
            own.append(on.submit(chain(number, ENDLESS, 30)))
            if draws.random() < 0.7 or len(own) > 20:
                own.pop(draws.randrange(len(own))).cancel()
        for future in own:
            future.cancel()

    threads = [threading.Thread(target=client, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    for number, sample in zip(kept, expected, strict=True):
        found = futures[number].result(100)
        assert found.tokens == sample.tokens
        np.testing.assert_array_equal(found.log_q, sample.log_q)
    assert on.counters().cancelled_chains == 9_900
    on.close()
    assert_nothing_is_held(on)
