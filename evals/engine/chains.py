"""A chain in the engine: what it has in flight, what it holds, and the pages that have to be kept for it.

Knows no other chain, no device and no order of seating.

**Pages.** A chain is guaranteed room for as many sequences of full length as it says it needs (`Chain.sequences`). Its
*claim* is that guarantee, or what it has if that is more, together with what its older requests in flight still need
where younger ones got their pages first. As long as all claims fit into the pool, the oldest request of every chain
finds its pages free, whatever the others do: nobody waits for somebody else, so that there is no deadlock.
"""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future
from typing import NamedTuple

from evals.engine.kv_cache import PagePool
from evals.engine.request import Slot
from evals.types import Chain, Handle, Request, Sample


class Running(NamedTuple):
    """A request in a slot."""

    live: Live
    slot: Slot
    handle: Handle


class Drawn(NamedTuple):
    """One token of one request, with its statistics in nats."""

    running: Running
    token: int
    log_q: float
    log_z: float


class Held(NamedTuple):
    """A sequence that a chain may name."""

    tokens: tuple[int, ...]
    number: int
    """That of the request it comes from."""


class Flight:
    """A request in flight: it waits, or runs in a slot, from where it may be sent back to wait."""

    def __init__(self, live: Live, tag: Hashable, request: Request, number: int, lease: Handle | None) -> None:
        self.live, self.tag, self.request = live, tag, request
        self.number = number
        """Order of arrival."""
        self.lease = lease
        """Its parent under another name, so that the chain may drop the parent meanwhile; None where its whole prefix
        has to be written."""
        self.limit = len(request.prefix) + request.max_new
        self.running: Running | None = None

    @property
    def start(self) -> int:
        """First position that it writes."""
        return 0 if self.lease is None else len(self.request.prefix) - 1

    @property
    def pages(self) -> int:
        """Pages that it needs beyond its parent's."""
        return PagePool.pages_for(self.start, self.limit)

    @property
    def is_head(self) -> bool:
        """Whether it is the oldest request of its chain: the one that a chain can count on."""
        return self.live.head is self


class Live:
    """A chain with its future, what it has in flight, and the sequences that it holds."""

    def __init__(self, chain: Chain, seed: int) -> None:
        self.chain, self.seed = chain, seed
        self.future: Future[Sample] = Future()
        self.held: dict[Handle, Held] = {}
        self.flights: dict[Hashable, Flight] = {}
        """By tag, oldest first."""
        self.full = self.guaranteed = self.claim = 0
        """Pages of its longest sequence, pages that are kept for it, and pages that others cannot have now."""

    def begin(self) -> bool:
        """Whether somebody wants its sample; from then on it cannot be cancelled."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    @property
    def head(self) -> Flight | None:
        """The oldest request in flight."""
        return next(iter(self.flights.values()), None)

    def guarantee(self, longest: int) -> None:
        """Set the pages that are kept for it, in an engine whose longest sequence has `longest` tokens."""
        prompt = self.chain.prompt
        length = min(len(prompt.token_ids) + prompt.max_new_tokens, longest)
        self.full = PagePool.pages_for(0, length)
        self.guaranteed = self.chain.sequences * self.full

    def add(self, flight: Flight) -> None:
        """Take a request as its youngest."""
        self.flights[flight.tag] = flight
        self.full = max(self.full, PagePool.pages_for(0, flight.limit))

    def claims(self, pool: PagePool, joining: Flight | None = None, *, extras: bool = True) -> int:
        """Pages that are not free to others.

        With `joining`, if that request got its pages now; without `extras`, if the extras that run gave theirs back.

        A request that waits is owed its pages if a younger one, running or done, has got some: it came first, and the
        chain may need its completion before it gives back what the younger one took.
        """
        running = [f for f in self.flights.values() if f.running is not None and (extras or f.is_head)]
        numbers = [held.number for handle, held in self.held.items() if pool.reaches(handle, 1)]
        numbers += [flight.number for flight in running]
        if joining is not None:
            numbers.append(joining.number)
        newest = max(numbers, default=-1)
        owed = [f.pages for f in self.flights.values() if f not in running and f.number <= newest]
        handles = [*self.held, *(f.running.handle for f in running if f.running is not None)]
        for flight in self.flights.values():
            if flight.lease is not None and flight.request.parent not in self.held:
                handles.append(flight.lease)
        if (len(handles) + len(owed)) * self.full <= self.guaranteed:
            return self.guaranteed
        return max(self.guaranteed, pool.distinct(handles) + sum(owed))
