"""The scheduler: which requests get slots and pages, and which are preempted.

A chain's oldest request in flight is its *primary request*. Primary requests come first, in order of arrival; as at
most as many chains are alive as there are slots, each gets one. *Speculative requests*, the younger ones of a chain,
run only in slots that are idle otherwise, and are preempted for primary requests and new chains, the youngest first:
their pages are dropped, and they start again later, with the same keys and so with the same tokens. Pages are given
within the reservations of chain_state.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, islice

from evals.engine.chain_state import ActiveRequest, ChainState
from evals.engine.kv_cache import PagePool


class Scheduler:
    """Gives slots and pages to the requests of the chains that it has admitted."""

    def __init__(self, pool: PagePool, num_slots: int) -> None:
        self.pool, self.num_slots = pool, num_slots
        self.alive: dict[ChainState, None] = {}
        self.slots: list[ActiveRequest] = []
        """Requests that run, in the order in which they got their slots."""
        self.reserved = 0
        """Pages that are reserved for all chains together."""
        self._waiting: dict[ActiveRequest, None] = {}
        self.preempted = 0
        """How often a request was sent back to wait."""

    def admit(self, state: ChainState) -> bool:
        """Admit a chain; False if there is no slot for its primary request now or not the pages guaranteed to it."""
        if len(self.alive) == self.num_slots or not self._make_room(state, state.guaranteed):
            return False
        self.alive[state] = None
        self._reserve(state, state.guaranteed)
        self._waiting.update(dict.fromkeys(state.requests.values()))
        return True

    def remove(self, state: ChainState) -> None:
        """Forget a chain that has ended, admitted or not; its requests in flight are to be finished one by one."""
        if state in self.alive:
            del self.alive[state]
            self._reserve(state, 0)

    def enqueue(self, active: ActiveRequest) -> None:
        """Let a request of an admitted chain wait for its turn."""
        self._waiting[active] = None

    def could_admit(self, states: Iterable[ChainState]) -> int:
        """How many of these chains, in order, could be admitted now without preempting a request."""
        first = islice(states, self.num_slots - len(self.alive))
        room = self.pool.capacity - self.reserved
        return sum(pages <= room for pages in accumulate(state.guaranteed for state in first))

    def recount(self, state: ChainState) -> None:
        """Renew the reservation of a chain whose sequences or requests have changed."""
        self._reserve(state, state.reserved_pages(self.pool))

    def waiting_primaries(self) -> list[ActiveRequest]:
        """Primary requests without a slot, in order of arrival."""
        return sorted((active for active in self._waiting if active.is_primary), key=lambda active: active.number)

    def schedule_primaries(self) -> list[ActiveRequest]:
        """Start the primary requests that wait; one that needs more than its chain is guaranteed may stay waiting."""
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
        """Start speculative requests in idle slots, in order of arrival, from pages that are reserved for no chain.

        With `within_guarantee` only from what is guaranteed to their own chain, since a new chain waits for the others.
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
        """Give a request a slot and its pages, which have to be prepared, and written unless it has a parent's."""
        request = active.request
        if active.parent_ref is None:
            active.allocation, present = self.pool.open_prompt(request.prefix, active.limit)
            active.prefilled = len(request.prefix) - 1 - present
        else:
            active.allocation = self.pool.open(active.parent_ref, active.start, active.limit)
        del self._waiting[active]
        self.slots.append(active)
        self.recount(active.state)
        return active

    def finish(self, active: ActiveRequest) -> None:
        """Take a request that has ended, or is given up, from its chain and its slot, if any; its sequence stays."""
        del active.state.requests[active.tag]
        if active.allocation is not None:
            self.slots.remove(active)
        else:
            self._waiting.pop(active, None)
        if active.parent_ref is not None:
            self.pool.drop(active.parent_ref)

    def preempt(self, active: ActiveRequest) -> None:
        """Send a running request back to wait; it will draw the same tokens again."""
        assert active.allocation is not None, "only what runs can be sent back"
        self.slots.remove(active)
        self.pool.drop(active.allocation.handle)
        again = ActiveRequest(active.state, active.tag, active.request, active.number, active.parent_ref)
        active.state.requests[active.tag] = again  # in the same place
        self._waiting[again] = None
        self.preempted += 1
        self.recount(active.state)

    def clear(self, num_slots: int) -> list[ChainState]:
        """Preempt all requests and return all chains in the order of admission; from now on with `num_slots` slots.

        Requests in flight are as if they had just been submitted, without a parent's pages to branch from.
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
        """The youngest speculative request of these chains that runs."""
        requests = [active for state in states for active in state.requests.values()]
        running = (active for active in requests if active.allocation and not active.is_primary)
        return max(running, key=lambda active: active.number, default=None)
