"""Who sits: which requests get slots and pages, and which give way. Plain Python: no device, no chain's code.

A chain's oldest request in flight is its *head*. Heads come first, in order of arrival; as fewer chains are alive than
there are slots, or as many, every head gets a slot. *Extras*, the younger requests of a chain, sit only in slots that
nobody else can use, and give way to heads and new chains, the youngest first: their pages are dropped, and they start
again later, with the same keys and so with the same tokens. Pages are given within the claims of chains.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, islice

from evals.engine.chain_state import ActiveRequest, ChainState
from evals.engine.kv_cache import PagePool


class Scheduler:
    """Slots, pages and the chains that are alive."""

    def __init__(self, pool: PagePool, num_slots: int) -> None:
        self.pool, self.num_slots = pool, num_slots
        self.alive: dict[ChainState, None] = {}
        self.slots: list[ActiveRequest] = []
        """What runs, in order of seating."""
        self.reserved = 0
        """Pages that the chains claim together."""
        self._waiting: dict[ActiveRequest, None] = {}
        self.preempted = 0
        """Requests that were sent back to wait."""

    def admit(self, state: ChainState) -> bool:
        """Admit a chain, unless a slot for its head or the pages guaranteed to it cannot be had now."""
        if len(self.alive) == self.num_slots or not self._make_room(state, state.guaranteed):
            return False
        self.alive[state] = None
        self._reserve(state, state.guaranteed)
        self._waiting.update(dict.fromkeys(state.requests.values()))
        return True

    def remove(self, state: ChainState) -> None:
        """A chain has ended, if it had entered; what it has in flight leaves one by one."""
        if state in self.alive:
            del self.alive[state]
            self._reserve(state, 0)

    def enqueue(self, active: ActiveRequest) -> None:
        """Take a request of a chain that has entered."""
        self._waiting[active] = None

    def could_admit(self, states: Iterable[ChainState]) -> int:
        """How many of these chains, in order, could enter as things are."""
        first = islice(states, self.num_slots - len(self.alive))
        room = self.pool.capacity - self.reserved
        return sum(pages <= room for pages in accumulate(state.guaranteed for state in first))

    def recount(self, state: ChainState) -> None:
        """To be called when what a chain has or asks for has changed."""
        self._reserve(state, state.reserved_pages(self.pool))

    def waiting_primaries(self) -> list[ActiveRequest]:
        """In order of arrival."""
        return sorted((f for f in self._waiting if f.is_primary), key=lambda active: active.number)

    def schedule_primaries(self) -> list[ActiveRequest]:
        """All heads that wait; only one that wants more than its chain was guaranteed may have to wait on."""
        scheduled = []
        for active in self.waiting_primaries():
            if self._make_room(active.state, active.state.reserved_pages(self.pool, active)):
                if len(self.slots) == self.num_slots:
                    youngest = self._youngest(self.alive)
                    assert youngest is not None, "there are as many slots as primaries"
                    self.preempt(youngest)
                scheduled.append(self.start(active))
        return scheduled

    def schedule_speculative(self, within_guarantee: bool) -> list[ActiveRequest]:
        """Younger requests in slots that stand idle, in order of arrival, from pages that no chain is guaranteed.

        With `within_guarantee` only from what is guaranteed to their own chain, since somebody waits for the others.
        """
        if len(self.slots) == self.num_slots:
            return []
        free = 0 if within_guarantee else self.pool.capacity - self.reserved
        scheduled: list[ActiveRequest] = []
        blocked: set[ChainState] = set()
        for active in sorted(self._waiting, key=lambda active: active.number):
            state = active.state
            if len(self.slots) == self.num_slots or state in blocked:
                continue
            more = state.reserved_pages(self.pool, active) - state.reservation
            if more <= max(free, 0):
                free += state.reservation
                scheduled.append(self.start(active))
                free -= state.reservation
            else:
                blocked.add(state)
        return scheduled

    def start(self, active: ActiveRequest) -> ActiveRequest:
        """Give a request a slot and its pages, which have to be prepared, and filled unless it has a parent."""
        request = active.request
        if active.parent_ref is None:
            active.allocation, present = self.pool.open_prompt(request.prefix, active.limit, replaces=request.parent)
            active.prefilled = len(request.prefix) - 1 - present
        else:
            active.allocation = self.pool.open(active.parent_ref, active.start, active.limit, replaces=request.parent)
        del self._waiting[active]
        self.slots.append(active)
        self.recount(active.state)
        return active

    def finish(self, active: ActiveRequest) -> None:
        """A request is over, or given up: it leaves its chain, and its slot if it has one; its sequence stays."""
        del active.state.requests[active.tag]
        if active.allocation is not None:
            self.slots.remove(active)
        else:
            self._waiting.pop(active, None)
        if active.parent_ref is not None:
            self.pool.drop(active.parent_ref)

    def preempt(self, active: ActiveRequest) -> None:
        """Send a running request back to wait; what it has drawn so far it will draw again."""
        assert active.allocation is not None, "only what runs can be sent back"
        self.slots.remove(active)
        self.pool.drop(active.allocation.handle)
        again = ActiveRequest(active.state, active.tag, active.request, active.number, active.parent_ref)
        active.state.requests[active.tag] = again  # in the same place
        self._waiting[again] = None
        self.preempted += 1
        self.recount(active.state)

    def clear(self, num_slots: int) -> list[ChainState]:
        """Everybody gets up and leaves, in order of entry; from now on there are `num_slots` slots.

        Requests in flight are as if they had just been asked for, without a parent's pages to branch from.
        """
        for active in list(self.slots):
            self.preempt(active)
        states = list(self.alive)
        for state in states:
            self._reserve(state, 0)
            for active in state.requests.values():
                if active.parent_ref is not None:
                    self.pool.drop(active.parent_ref)
                    active.parent_ref = None
        self.alive.clear()
        self._waiting.clear()
        self.num_slots = num_slots
        return states

    def _make_room(self, state: ChainState, reservation: int) -> bool:
        """Whether `state` may reserve so many pages, after preempting as many speculative requests of others as that
        takes."""
        more = reservation - state.reservation
        if more <= max(self.pool.capacity - self.reserved, 0):
            return True
        overdrawn = [other for other in self.alive if other is not state and other.reservation > other.guaranteed]
        gain = sum(other.reservation - other.reserved_pages(self.pool, speculative=False) for other in overdrawn)
        if more > self.pool.capacity - self.reserved + gain:
            return False
        while more > self.pool.capacity - self.reserved:
            youngest = self._youngest(overdrawn)
            assert youngest is not None, "without speculative requests there is room"
            self.preempt(youngest)
        return True

    def _reserve(self, state: ChainState, pages: int) -> None:
        self.reserved += pages - state.reservation
        state.reservation = pages

    def _youngest(self, states: Iterable[ChainState]) -> ActiveRequest | None:
        """The youngest running extra of these chains."""
        requests = [f for state in states for f in state.requests.values() if f.allocation and not f.is_primary]
        return max(requests, key=lambda active: active.number, default=None)
