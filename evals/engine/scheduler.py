"""Who sits: which requests get slots and pages, and which give way. Plain Python: no device, no chain's code.

A chain's oldest request in flight is its *head*. Heads come first, in order of arrival; as fewer chains are alive than
there are slots, or as many, every head gets a slot. *Extras*, the younger requests of a chain, sit only in slots that
nobody else can use, and give way to heads and new chains, the youngest first: their pages are dropped, and they start
again later, with the same keys and so with the same tokens. Pages are given within the claims of chains.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, islice

from evals.engine.chain_state import Flight, Live
from evals.engine.kv_cache import PagePool


class Seating:
    """Slots, pages and the chains that are alive."""

    def __init__(self, pool: PagePool, num_slots: int) -> None:
        self.pool, self.num_slots = pool, num_slots
        self.alive: dict[Live, None] = {}
        self.slots: list[Flight] = []
        """What runs, in order of seating."""
        self.claimed = 0
        """Pages that the chains claim together."""
        self._waiting: dict[Flight, None] = {}
        self.evicted = 0
        """Requests that were sent back to wait."""

    def enter(self, live: Live) -> bool:
        """Admit a chain, unless a slot for its head or the pages guaranteed to it cannot be had now."""
        if len(self.alive) == self.num_slots or not self._make_room(live, live.guaranteed):
            return False
        self.alive[live] = None
        self._claim(live, live.guaranteed)
        self._waiting.update(dict.fromkeys(live.flights.values()))
        return True

    def exit(self, live: Live) -> None:
        """A chain has ended, if it had entered; what it has in flight leaves one by one."""
        if live in self.alive:
            del self.alive[live]
            self._claim(live, 0)

    def wait(self, flight: Flight) -> None:
        """Take a request of a chain that has entered."""
        self._waiting[flight] = None

    def could_enter(self, lives: Iterable[Live]) -> int:
        """How many of these chains, in order, could enter as things are."""
        first = islice(lives, self.num_slots - len(self.alive))
        room = self.pool.capacity - self.claimed
        return sum(claimed <= room for claimed in accumulate(live.guaranteed for live in first))

    def recount(self, live: Live) -> None:
        """To be called when what a chain has or asks for has changed."""
        self._claim(live, live.claims(self.pool))

    def waiting_heads(self) -> list[Flight]:
        """In order of arrival."""
        return sorted((f for f in self._waiting if f.is_head), key=lambda flight: flight.number)

    def seat_heads(self) -> list[Flight]:
        """All heads that wait; only one that wants more than its chain was guaranteed may have to wait on."""
        seated = []
        for flight in self.waiting_heads():
            if self._make_room(flight.live, flight.live.claims(self.pool, flight)):
                if len(self.slots) == self.num_slots:
                    extra = self._youngest(self.alive)
                    assert extra is not None, "there are as many slots as heads"
                    self.evict(extra)
                seated.append(self.open(flight))
        return seated

    def seat_extras(self, within_guarantee: bool) -> list[Flight]:
        """Younger requests in slots that stand idle, in order of arrival, from pages that no chain is guaranteed.

        With `within_guarantee` only from what is guaranteed to their own chain, since somebody waits for the others.
        """
        if len(self.slots) == self.num_slots:
            return []
        free = 0 if within_guarantee else self.pool.capacity - self.claimed
        seated: list[Flight] = []
        blocked: set[Live] = set()
        for flight in sorted(self._waiting, key=lambda flight: flight.number):
            live = flight.live
            if len(self.slots) == self.num_slots or live in blocked:
                continue
            more = live.claims(self.pool, flight) - live.claim
            if more <= max(free, 0):
                free += live.claim
                seated.append(self.open(flight))
                free -= live.claim
            else:
                blocked.add(live)
        return seated

    def open(self, flight: Flight) -> Flight:
        """Give a request a slot and its pages, which have to be prepared, and filled unless it has a parent."""
        request = flight.request
        if flight.lease is None:
            flight.opening, present = self.pool.open_prompt(request.prefix, flight.limit, replaces=request.parent)
            flight.prefilled = len(request.prefix) - 1 - present
        else:
            flight.opening = self.pool.open(flight.lease, flight.start, flight.limit, replaces=request.parent)
        del self._waiting[flight]
        self.slots.append(flight)
        self.recount(flight.live)
        return flight

    def leave(self, flight: Flight) -> None:
        """A request is over, or given up: it leaves its chain, and its slot if it has one; its sequence stays."""
        del flight.live.flights[flight.tag]
        if flight.opening is not None:
            self.slots.remove(flight)
        else:
            self._waiting.pop(flight, None)
        if flight.lease is not None:
            self.pool.drop(flight.lease)

    def evict(self, flight: Flight) -> None:
        """Send a running request back to wait; what it has drawn so far it will draw again."""
        assert flight.opening is not None, "only what runs can be sent back"
        self.slots.remove(flight)
        self.pool.drop(flight.opening.handle)
        again = Flight(flight.live, flight.tag, flight.request, flight.number, flight.lease)
        flight.live.flights[flight.tag] = again  # in the same place
        self._waiting[again] = None
        self.evicted += 1
        self.recount(flight.live)

    def clear(self, num_slots: int) -> list[Live]:
        """Everybody gets up and leaves, in order of entry; from now on there are `num_slots` slots.

        Requests in flight are as if they had just been asked for, without a parent's pages to branch from.
        """
        for flight in list(self.slots):
            self.evict(flight)
        lives = list(self.alive)
        for live in lives:
            self._claim(live, 0)
            for flight in live.flights.values():
                if flight.lease is not None:
                    self.pool.drop(flight.lease)
                    flight.lease = None
        self.alive.clear()
        self._waiting.clear()
        self.num_slots = num_slots
        return lives

    def _make_room(self, live: Live, claim: int) -> bool:
        """Whether the claim of `live` may become `claim`, after sending back as many extras of others as that takes."""
        more = claim - live.claim
        if more <= max(self.pool.capacity - self.claimed, 0):
            return True
        overdrawn = [other for other in self.alive if other is not live and other.claim > other.guaranteed]
        gain = sum(other.claim - other.claims(self.pool, extras=False) for other in overdrawn)
        if more > self.pool.capacity - self.claimed + gain:
            return False
        while more > self.pool.capacity - self.claimed:
            extra = self._youngest(overdrawn)
            assert extra is not None, "without extras there is room"
            self.evict(extra)
        return True

    def _claim(self, live: Live, pages: int) -> None:
        self.claimed += pages - live.claim
        live.claim = pages

    def _youngest(self, lives: Iterable[Live]) -> Flight | None:
        """The youngest running extra of these chains."""
        flights = [f for live in lives for f in live.flights.values() if f.opening and not f.is_head]
        return max(flights, key=lambda flight: flight.number, default=None)
