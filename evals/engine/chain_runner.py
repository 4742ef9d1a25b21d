"""Chains as they run: their operations carried out, their completions handed over. Plain Python: no device, no thread.

A chain is started when fewer than `num_slots` chains are alive and the pages that it needs can be kept for it; who sits
is decided in seating.py. When a chain ends, in whatever way, everything it holds is released.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

import numpy as np

from evals.engine.chain_state import Flight, Live, validate
from evals.engine.kv_cache import PagePool
from evals.engine.scheduler import Seating
from evals.types import Cancel, Completion, Drop, Ended, Handle, Keep, Operation, Request, Submit, UserError

TOGETHER = 32
"""New chains start when a share of 1 / TOGETHER of the slots is free for them, since a prompt costs a pass of its own
little less than several cost together."""


class Scheduler:
    """The state of an engine apart from its device. Errors of a chain end that chain and nothing else."""

    def __init__(self, pool: PagePool, num_slots: int, max_length: int, vocab_size: int) -> None:
        self._pool, self.seating = pool, Seating(pool, num_slots)
        self._max_length, self._vocab_size = max_length, vocab_size
        self._new: deque[Live] = deque()
        self._submitted = 0

    @property
    def idle(self) -> bool:
        """True if nothing runs, waits or is to be started."""
        return not (self.seating.alive or self._new)

    @property
    def num_chains(self) -> int:
        """Chains that have not ended."""
        return len(self.seating.alive) + len(self._new)

    def add(self, live: Live) -> None:
        """Take a chain; it starts when its turn comes."""
        live.guarantee(self._max_length)
        self._new.append(live)

    def seat(self) -> list[Flight]:
        """Seat heads, then start chains, then seat extras, as many as there is room for.

        A head that waits although nothing runs waits for ever, since only a chain that goes on gives pages back; its
        chain, which asks for more than it was guaranteed, fails.
        """
        seated: list[Flight] = []
        while True:
            seated += self.seating.seat_heads()
            stuck = self.seating.waiting_heads()
            if stuck and self.seating.slots:
                return seated
            if stuck:
                self._fail(stuck[-1].live, self._out_of_pages(stuck[-1]))
            elif self._few_could_start() or not self._start_next():
                return seated + self.seating.seat_extras(within_guarantee=bool(self._new))

    def record(self, flight: Flight, token: int, log_q: float, log_z: float) -> bool:
        """A drawn token of a running request; if that ends it, its chain goes on at once.

        False for a request that its chain has cancelled within the same step, or that has been sent back: passed over.
        """
        live = flight.live
        if live.flights.get(flight.tag) is not flight:
            return False
        try:
            ended = flight.add(token, log_q, log_z)
        except Exception as error:  # noqa: BLE001 - a stop rule is the chain's own code
            self._fail(live, error)
            return True
        if ended is not None:
            assert flight.opening is not None, "what draws has pages"
            handle = flight.opening.handle
            self.seating.leave(flight)
            self._pool.end(handle, len(flight.sequence))
            live.held[handle] = flight
            self._advance(live, self._arrival(flight, ended, handle))
        return True

    def requeue(self, num_slots: int, num_pages: int) -> None:
        """Go on with so many slots and pages, all of them empty; chains wait to enter again, ahead of new ones.

        What a chain holds keeps its handle and its tokens, from which a request that branches there is prefilled;
        requests in flight start again, with the same keys and so with the same tokens.
        """
        self._new.extendleft(reversed(self.seating.clear(num_slots)))
        self._pool.reset(num_pages)

    def fail_all(self, error: BaseException) -> None:
        """Every chain ends with this error."""
        while self._new:
            live = self._new.popleft()
            if live.begin():
                self._fail(live, error)
        for live in list(self.seating.alive):
            self._fail(live, error)

    def _few_could_start(self) -> bool:
        """Whether to wait until more slots are free, as long as somebody runs."""
        free = self.seating.num_slots - len(self.seating.alive)
        return bool(self.seating.slots) and free < min(self.seating.num_slots // TOGETHER, len(self._new))

    def _start_next(self) -> bool:
        """Start the chain whose turn it is, or pass it over if nobody wants it any more; False if it has to wait."""
        if not self._new:
            return False
        live = self._new[0]
        refusal = self._refusal(live)
        if refusal is None and not self.seating.enter(live):
            return False
        self._new.popleft()
        if not live.begin():
            self._release(live)
            live.chain.steps.close()
        elif refusal is not None:
            self._fail(live, refusal)
        elif not live.flights:  # else it goes on where it was when it had to leave
            self._advance(live, None)
        return True

    def _refusal(self, live: Live) -> UserError | None:
        """Why the chain can never start."""
        if live.guaranteed <= self._pool.capacity:
            return None
        return UserError(
            f"an answer needs room for {live.chain.sequences} sequences at once, {live.guaranteed} pages of keys and "
            f"values, and there are {self._pool.capacity}; take fewer candidates (sampler.num_candidates), shorter "
            "answers (task.max_new_tokens) or more slots (POWERSAMPLE_BATCH_SIZE)."
        )

    def _out_of_pages(self, flight: Flight) -> RuntimeError:
        live, pool = flight.live, self._pool
        return RuntimeError(
            f"a request needs {flight.own_pages} pages of keys and values; {pool.num_free} of {pool.capacity} are "
            f"free and nothing runs that could free more: its chain holds more than the {live.chain.sequences} "
            f"sequences, {live.guaranteed} pages, that it was to need"
        )

    def _idle_slots(self) -> int:
        """Slots that stand idle and that no head and no new chain will take."""
        free = self.seating.num_slots - len(self.seating.slots) - len(self.seating.waiting_heads())
        return max(free - self.seating.could_enter(self._new), 0) if free > 0 else 0

    def _advance(self, live: Live, arrival: tuple[Hashable, Completion] | None) -> None:
        """Send an arrival to the chain and do what it asks for, until it waits for something in flight."""
        arrivals = deque([arrival])
        try:
            while arrivals:
                operations = live.chain.steps.send(arrivals.popleft())
                for operation in operations:
                    cancelled = self._perform(live, operation)
                    if cancelled is not None:
                        arrivals.append(cancelled)
                if not (arrivals or live.flights):
                    if not operations:
                        raise RuntimeError("the chain waits, and has nothing in flight")
                    arrivals.append(None)
            self.seating.recount(live)
        except StopIteration as stop:
            self._release(live)
            live.future.set_result(stop.value)
        except Exception as error:  # noqa: BLE001 - whatever a chain raises belongs to whoever waits for its sample
            self._fail(live, error)

    def _perform(self, live: Live, operation: Operation) -> tuple[Hashable, Completion] | None:
        """Carry an operation out; a cancelled request's completion is returned."""
        match operation:
            case Submit(tag, request):
                self._submit(live, tag, request)
            case Keep(handle):
                self._own(live, handle)
                parent = self._pool.keep(handle)
                if parent is not None:
                    del live.held[parent]
            case Drop(handle):
                self._own(live, handle)
                self._pool.drop(handle)
                del live.held[handle]
            case Cancel(tag):
                return self._cancel(live, tag)
            case _:
                raise TypeError(f"a chain yielded {operation!r}, which is no operation")
        return None

    def _submit(self, live: Live, tag: Hashable, request: Request) -> None:
        if tag in live.flights:
            raise ValueError(f"the tag {tag!r} is in flight already")
        validate(request, self._max_length, self._vocab_size)
        lease = None
        if request.parent is not None:
            self._own(live, request.parent)
            if live.held[request.parent].sequence[: len(request.prefix)] != request.prefix:
                raise ValueError("the parent's tokens do not start with the request's prefix")
            if self._pool.reaches(request.parent, len(request.prefix) - 1):
                lease = self._pool.fork(request.parent)
        self._submitted += 1
        flight = Flight(live, tag, request, self._submitted, lease)
        live.flights[tag] = flight
        live.full = max(live.full, self._pool.pages_for(0, flight.limit))
        self.seating.wait(flight)

    def _own(self, live: Live, handle: Handle) -> None:
        if handle not in live.held:
            raise ValueError(f"the chain does not hold sequence {handle}")

    def _cancel(self, live: Live, tag: Hashable) -> tuple[Hashable, Completion]:
        if tag not in live.flights:
            raise ValueError(f"nothing with the tag {tag!r} is in flight")
        flight = live.flights[tag]
        self._give_up(flight)
        return self._arrival(flight, "cancelled", None)

    def _arrival(self, flight: Flight, ended: Ended, handle: Handle | None) -> tuple[Hashable, Completion]:
        """What a request has drawn, as its chain hears of it."""
        log_q, log_z = np.array([flight.log_q, flight.log_z], dtype=np.float64)
        tokens = tuple(flight.tokens)
        return flight.tag, Completion(tokens, log_q, log_z, ended, handle, flight.prefilled, self._idle_slots())

    def _give_up(self, flight: Flight) -> None:
        self.seating.leave(flight)
        if flight.opening is not None:
            self._pool.drop(flight.opening.handle)

    def _release(self, live: Live) -> None:
        """Give back everything that a chain holds or has in flight."""
        self.seating.exit(live)
        for flight in list(live.flights.values()):
            self._give_up(flight)
        for handle in live.held:
            self._pool.drop(handle)
        live.held.clear()

    def _fail(self, live: Live, error: BaseException) -> None:
        self._release(live)
        try:
            live.chain.steps.close()
        except Exception as second:  # noqa: BLE001 - the first error is the one that ended the chain
            error.add_note(f"closing the chain raised {second!r}")
        live.future.set_exception(error)
