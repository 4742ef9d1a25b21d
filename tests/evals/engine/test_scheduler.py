"""The scheduler without a device, over pages alone: what it runs, what it preempts, and that every chain ends."""

from __future__ import annotations

import random
from collections.abc import Generator, Hashable, Iterable, Sequence
from typing import Any

import pytest

from evals.engine.chain_runner import ChainRunner
from evals.engine.chain_state import ChainState, DecodeState
from evals.engine.kv_cache import PAGE, PagePool
from evals.types import Cancel, Chain, Completion, Drop, Handle, Keep, Operation, Prompt, Request, Sample, Submit
from support.figures import figures
from support.pages import audit
from support.tiny_models import VOCABULARY, prompt, request, sample

LENGTH = 6 * PAGE
SEED = 3
EOS = range(2)
Script = Generator[list[Operation], tuple[Hashable, Completion] | None, Sample]


class Harness:
    """A chain runner without a decoder, whose requests draw the token that their uniform names."""

    def __init__(self, num_pages: int, slots: int, share_unit: int = 1) -> None:
        self.pool = PagePool(num_pages + 1, share_unit)
        self.runner = ChainRunner(self.pool, slots, LENGTH, VOCABULARY)
        self.scheduler = self.runner.scheduler
        self.speculative = 0

    def add(self, script: Script, to: Prompt, sequences: int = 2) -> ChainState:
        state = ChainState(Chain(to, script, sequences), LENGTH)
        self.runner.add(state)
        return state

    def schedule(self) -> None:
        self.runner.schedule()
        self.check()

    def draw(self) -> None:
        for running in list(self.scheduler.slots):
            self.runner.record(running, token(running), -0.7, -0.1)
            self.check()

    def run(self, late: Iterable[ChainState] = (), every: int = 10, honest: bool = True) -> None:
        """Run to the end, adding one of `late` every so many steps; primaries of `honest` chains always run."""
        more = list(late)
        for step in range(20_000):
            if more and (step % every == 0 or self.runner.idle):
                self.runner.add(more.pop())
            if self.runner.idle:
                break
            self.schedule()
            assert self.scheduler.slots, "nothing runs, and not all is done"
            if honest:
                assert not self.scheduler.waiting_primaries()
            self.speculative += sum(running not in self.primaries() for running in self.scheduler.slots)
            self.draw()
        assert self.runner.idle
        assert self.pool.num_used == 0

    def primaries(self) -> list[Any]:
        return [state.primary for state in self.scheduler.alive if state.primary is not None]

    def check(self) -> None:
        """Pages add up, reservations are up to date and within the pool, and no request is scheduled twice."""
        audit(self.pool)
        assert len(self.scheduler.slots) <= self.runner.scheduler.num_slots
        for state in self.scheduler.alive:
            assert state.reserved_pages(self.pool) <= state.reservation
        assert sum(state.reservation for state in self.scheduler.alive) <= self.pool.capacity
        requests = [active for state in self.scheduler.alive for active in state.requests.values()]
        assert sorted(map(id, self.scheduler.slots)) == sorted(
            id(active) for active in requests if active.allocation is not None
        )

    def tags(self) -> list[Hashable]:
        return [active.tag for active in self.scheduler.slots]


def token(slot: DecodeState) -> int:
    return int(slot.uniform() * VOCABULARY)


def answer(submitted: Request, to: Prompt) -> tuple[int, ...]:
    """The tokens that a request must draw, however often it is preempted."""
    slot = DecodeState(submitted, to)
    while slot.add(token(slot), -0.7, -0.1) is None:
        pass
    return tuple(slot.tokens)


class Wanderer:
    """A chain that submits, branches, keeps, holds, drops and cancels at random, within the sequences it may need.

    Completions are looked at in the order of their requests; until then they do not count.
    """

    def __init__(self, seed: int, to: Prompt, sequences: int, total: int) -> None:
        self.random, self.to, self.room, self.total = random.Random(seed), to, sequences - 1, total
        self.base: dict[Handle, tuple[int, ...]] = {}
        self.done: dict[int, Completion] = {}
        self.submitted: dict[int, Request] = {}
        self.in_flight: list[int] = []
        self.cancelled: set[int] = set()
        self.operations: list[Operation] = []

    def script(self) -> Script:
        while True:
            self.settle()
            self.submit()
            if not self.in_flight:
                return sample()
            operations, self.operations = self.operations, []
            arrival = yield operations
            assert arrival is not None
            tag, completion = arrival
            assert isinstance(tag, int)
            assert completion.idle >= 0
            self.in_flight.remove(tag)
            self.done[tag] = completion
            whole = answer(self.submitted[tag], self.to)
            assert completion.tokens == (whole if completion.ended != "cancelled" else whole[: len(completion.tokens)])

    def needed(self) -> set[Handle | None]:
        """Sequences that are held or branched from."""
        return {*self.base, *(self.submitted[tag].parent for tag in self.in_flight)} - {None}

    def settle(self) -> None:
        """Decide on what has arrived, as far as nothing older is in flight."""
        for tag in sorted(self.done):
            if self.in_flight and tag > self.in_flight[0]:
                break
            completion, submitted = self.done.pop(tag), self.submitted[tag]
            if completion.handle is None:
                continue
            choice = self.random.random()
            kept = self.needed() | {completion.handle}
            if submitted.parent is not None and submitted.parent in self.base and choice < 0.4:
                self.operations.append(Keep(completion.handle))
                del self.base[submitted.parent]
            elif len(kept) > self.room or choice < 0.7:
                self.operations.append(Drop(completion.handle))
                continue
            self.base[completion.handle] = submitted.prefix + completion.tokens
            self.cancel([t for t in self.in_flight if self.submitted[t].parent not in {None, *self.base}])
        if self.base and self.random.random() < 0.2:
            handle = self.random.choice(list(self.base))
            del self.base[handle]
            self.operations.append(Drop(handle))
        if self.in_flight and self.random.random() < 0.1:
            self.cancel([self.random.choice(self.in_flight)])

    def cancel(self, tags: list[int]) -> None:
        """Cancel requests; their completions arrive at once."""
        self.operations += [Cancel(tag) for tag in tags if tag not in self.cancelled]
        self.cancelled.update(tags)

    def submit(self) -> None:
        limit = len(self.to.token_ids) + self.to.max_new_tokens
        for _ in range(self.random.choice([0, 1, 1, 2, 5]) if self.in_flight else 1 + self.random.randrange(4)):
            if len(self.submitted) == self.total:
                return
            choices = [
                h for h, tokens in self.base.items() if len(self.needed() | {h}) <= self.room and len(tokens) > 1
            ]
            parent = self.random.choice([None, *choices])
            tokens = self.to.token_ids if parent is None else self.base[parent]
            cut = len(tokens) if parent is None else self.random.randrange(1, min(len(tokens) + 1, limit))
            tag = len(self.submitted)
            self.submitted[tag] = request(
                self.to, self.random.randint(1, limit - cut), prefix=tokens[:cut], parent=parent, key=(0, 0, tag),
                origin=min(cut, len(self.to.token_ids)),
            )  # fmt: skip
            self.in_flight.append(tag)
            self.operations.append(Submit(tag, self.submitted[tag]))


def wanderers(harness: Harness, seed: int, count: int, needs: Sequence[int] = (2, 2, 3, 4, 8)) -> list[ChainState]:
    rng = random.Random(seed)
    states = []
    for i in range(count):
        to = prompt(i % 5, rng.randint(1, 40), rng.randint(5, LENGTH - 40), eos=EOS if rng.random() < 0.7 else ())
        full = PagePool.pages_for(0, len(to.token_ids) + to.max_new_tokens)
        sequences = min(rng.choice(needs), harness.pool.capacity // full)
        script = Wanderer(rng.randrange(1 << 30), to, sequences, rng.randint(1, 40)).script()
        states.append(ChainState(Chain(to, script, sequences), LENGTH))
    return states


@pytest.mark.parametrize("seed", range(12))
def test_chains_of_any_behaviour_end_in_a_small_pool(seed: int) -> None:
    """Several in flight, holding several, cancelling: no deadlock, no leak, and the tokens of undisturbed requests."""
    rng = random.Random(seed)
    harness = Harness(num_pages=rng.choice([12, 24, 48, 96]), slots=rng.randint(1, 8), share_unit=rng.choice([1, 4]))
    states = wanderers(harness, seed, 30)
    for state in states[:8]:
        harness.runner.add(state)
    harness.run(states[8:], every=rng.choice([5, 60]))
    assert all(state.future.result() for state in states)


def test_speculative_requests_and_preemptions_happen_in_the_random_test() -> None:
    """Otherwise that test would prove little."""
    for num_pages, slots, every in [(48, 12, 20), (96, 4, 50)]:  # short of pages, short of slots
        harness = Harness(num_pages, slots)
        harness.run(wanderers(harness, 1, 30, needs=(2,)), every)
        assert harness.speculative > 500
        assert harness.scheduler.preempted > 3


@pytest.mark.parametrize("seed", range(4))
def test_a_chain_that_needs_more_than_it_said_fails_or_ends_and_disturbs_no_other(seed: int) -> None:
    rng = random.Random(seed)
    harness = Harness(num_pages=20, slots=4)
    honest, greedy = [], []
    for i in range(12):
        to = prompt(i, rng.randint(1, 20), rng.randint(5, 40), eos=EOS)
        wanderer = Wanderer(rng.randrange(1 << 30), to, 9 if i % 3 == 0 else 2, 12)
        (greedy if i % 3 == 0 else honest).append(harness.add(wanderer.script(), to))
    harness.run(honest=False)
    assert all(state.future.exception() is None for state in honest)
    for state in greedy:
        error = state.future.exception()
        assert error is None or "holds more than the 2 sequences" in str(error)


def submits(count: int, to: Prompt, new: int = 8) -> Script:
    """All at once; ends when all have arrived. Its sample says in which order, and how many slots were idle."""
    operations: list[Operation] = [Submit(tag, request(to, new + tag, key=(0, 0, tag))) for tag in range(count)]
    order, idle = [], []
    while len(order) < count:
        arrival = yield operations
        assert arrival is not None
        order.append(arrival[0])
        idle.append(arrival[1].idle)
        assert arrival[1].handle is not None
        operations = [Drop(arrival[1].handle)]
    return sample(order=order, idle=idle)


def test_primary_requests_come_first_and_speculative_ones_get_what_is_left() -> None:
    harness = Harness(num_pages=100, slots=4)
    to = [prompt(i, 4) for i in range(2)]
    harness.add(submits(3, to[0]), to[0])
    harness.add(submits(3, to[1]), to[1])
    harness.schedule()
    states = list(harness.scheduler.alive)
    assert [(states.index(r.state), r.tag) for r in harness.scheduler.slots] == [(0, 0), (1, 0), (0, 1), (0, 2)]


def test_the_youngest_speculative_request_is_preempted_for_a_new_chain_and_the_next_oldest_becomes_primary() -> None:
    harness = Harness(num_pages=100, slots=3)
    to, other = prompt(0, 4), prompt(1, 4)
    first = harness.add(submits(4, to), to)
    harness.schedule()
    assert harness.tags() == [0, 1, 2]
    harness.draw()
    harness.add(submits(1, other), other)
    harness.schedule()
    assert [(r.state is first, r.tag) for r in harness.scheduler.slots] == [(True, 0), (True, 1), (False, 0)]
    assert harness.scheduler.preempted == 1
    while 0 in first.requests:
        harness.draw()
        harness.schedule()
    assert first.primary is first.requests[1]
    harness.run()
    assert figures(first.future.result()).order == [0, 1, 2, 3]


def test_idle_counts_slots_that_no_chain_waits_for() -> None:
    """Four slots; when the first of two requests arrives three are left, and one with two more chains to come."""
    for waiting, expected in [(0, 3), (2, 1), (9, 1)]:
        harness = Harness(num_pages=200, slots=4)
        to = prompt(0, 4)
        first = harness.add(submits(1, to, new=2), to)
        harness.add(submits(1, to, new=5), to)
        harness.schedule()
        for _ in range(waiting):
            harness.add(submits(1, to), to)
        harness.draw()
        harness.draw()
        assert figures(first.future.result()).idle == [expected]
        harness.run()


def test_idle_counts_only_new_chains_that_find_their_pages() -> None:
    harness = Harness(num_pages=9, slots=4)  # a chain is guaranteed 8 of them
    to = prompt(0, 4, max_new=60)
    first = harness.add(submits(1, to, new=2), to)
    harness.schedule()
    harness.add(submits(1, to), to)
    harness.draw()
    harness.draw()
    assert figures(first.future.result()).idle == [4]
    harness.run()


def test_speculative_requests_do_not_keep_a_new_chain_from_its_pages() -> None:
    """The first chain fills the pool with speculative requests; the second needs half of it and gets it at once."""
    harness = Harness(num_pages=16, slots=8)
    to = prompt(0, 4, max_new=60)
    first = harness.add(submits(4, to, new=50), to)
    harness.schedule()
    assert harness.tags() == [0, 1, 2, 3]
    second = harness.add(submits(2, to, new=50), to)
    harness.schedule()
    assert [running.state is second for running in harness.scheduler.slots] == [False, False, True, True]
    harness.run()
    assert figures(first.future.result()).order == [0, 1, 2, 3]
    assert figures(second.future.result()).order == [0, 1]


def late(to: Prompt, news: list[int], state: int = 0) -> Script:
    """Holds a state of `state` tokens; drops what it asks for in order, not before all that is older has arrived."""
    if state:
        yield [Submit("state", request(to, state))]
    operations: list[Operation] = [Submit(tag, request(to, new, key=(0, 0, tag))) for tag, new in enumerate(news)]
    done: dict[Hashable, Completion] = {}
    settled = 0
    while settled < len(news):
        arrival = yield operations
        assert arrival is not None
        done[arrival[0]] = arrival[1]
        operations = []
        while settled in done:
            handle = done[settled].handle
            assert handle is not None
            operations.append(Drop(handle))
            settled += 1
    return sample()


def test_speculative_requests_take_no_pages_that_a_new_chain_waits_for() -> None:
    harness = Harness(num_pages=19, slots=4)
    to = prompt(0, 4, max_new=60)
    first = harness.add(late(to, [58, 50, 50, 58, 12]), to)
    harness.schedule()
    while 1 in first.requests:
        harness.schedule()
        harness.draw()
    harness.add(submits(1, to), to)  # 8 pages; requests 1 and 2 hold 8, and 0 has 4
    harness.schedule()
    assert (harness.tags(), harness.scheduler.preempted) == ([0, 3], 0)
    harness.run()


def test_a_request_is_not_preempted_for_pages_that_its_chain_will_need_again() -> None:
    """Request 2 took a page before 1 has ended: once 0 has ended the chain cannot go on without all that 1 needs."""
    harness = Harness(num_pages=18, slots=3)
    to, short = prompt(0, 4, max_new=90), prompt(1, 4, max_new=12)
    first = harness.add(late(to, [10, 90, 2], state=90), to)  # 6 pages of 12 guaranteed; 1, 6 and 1 page
    while 0 not in first.requests or 2 in first.requests:
        harness.schedule()
        harness.draw()
    harness.add(submits(1, short, new=12), short)  # 2 pages
    harness.add(submits(1, short, new=12), short, sequences=4)  # 4 pages
    harness.schedule()
    assert (harness.tags(), first.reservation, harness.scheduler.preempted) == ([0, 1, 0], 14, 0)
    harness.run()
    assert first.future.result()


def test_no_request_is_scheduled_before_an_older_one_of_its_chain_that_finds_no_pages() -> None:
    """Two requests of the second chain come back and share its prompt again, which leaves pages over in the same step;
    of the first chain's two the older one had been passed over by then."""
    harness = Harness(num_pages=40, slots=7)
    to, long, short, large = (
        prompt(0, 4, max_new=12),
        prompt(1, 80, max_new=16),
        prompt(2, 4, max_new=12),
        prompt(3, 96),
    )

    def script() -> Script:
        arrival = yield [
            Submit(tag, request(to, new, key=(0, 0, new))) for tag, new in [("a", 12), ("b", 1), ("c", 11)]
        ]
        assert arrival is not None
        assert arrival[0] == "b"
        operations: list[Operation] = [Submit("d", request(to, 10))]
        for _ in range(3):
            yield operations
            operations = []
        return sample()

    harness.add(script(), to)
    harness.add(late(long, [16, 15, 14, 1]), long)
    harness.schedule()
    assert harness.tags() == ["a", 0, "b", "c", 1, 2, 3]
    harness.draw()  # b and 3 have ended, and are held
    for _ in range(5):
        harness.add(submits(1, short, new=2), short, sequences=1)
    harness.schedule()
    assert (harness.tags(), harness.scheduler.preempted) == (["a", 0, 0, 0, 0, 0, 0], 3)
    harness.add(submits(1, large, new=1), large._replace(max_new_tokens=0), sequences=5)  # 30 pages, which it waits for
    for _ in range(2):
        harness.draw()
        harness.schedule()
    assert harness.tags() == ["a", 0, 1, 2]
    harness.run()


@pytest.mark.parametrize(("slots", "started"), [(31, [31, 1, 1, 1, 1, 1]), (64, [63, 1, 1, 1, 1, 2])])
def test_new_chains_leave_a_small_share_of_many_slots_to_speculative_requests(slots: int, started: list[int]) -> None:
    """One slot is free after every token. Of 64 slots one is left, until the last chain that waits may have it."""
    harness = Harness(num_pages=12 * slots, slots=slots)
    to = prompt(0, 4, max_new=80)
    for i in range(slots + 5):
        harness.add(submits(1, to, new=1 + i), to)
    starts = []
    for _ in started:
        starts.append(len(harness.runner.schedule()))
        harness.draw()
    assert starts == started
    harness.run()
