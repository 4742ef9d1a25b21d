"""Runs chains: carries out the operations that they yield and sends them the completions, without device or thread.

A chain is started when fewer than `num_slots` chains are alive and the pages that it needs can be reserved; which
requests run is decided in scheduler.py. When a chain ends, in whatever way, everything it holds is released.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Hashable
from concurrent.futures import CancelledError

import numpy as np

from evals.engine.chain_state import ActiveRequest, ChainState, validate
from evals.engine.kv_cache import PagePool
from evals.engine.scheduler import Scheduler
from evals.types import Cancel, Completion, Drop, Ended, Handle, Keep, Operation, Request, Submit, UserError

START_SHARE = 32
"""A new chain starts only while 1 / START_SHARE of the slots are free; fewer are left to speculative requests. On a GPU
with 256 slots that was measured to be faster than to fill them all (LOG.md)."""


class ChainRunner:
    """The chains of an engine and their scheduler. An error of a chain ends that chain and nothing else."""

    def __init__(self, pool: PagePool, num_slots: int, max_length: int, vocab_size: int) -> None:
        self._pool, self.scheduler = pool, Scheduler(pool, num_slots)
        self._max_length, self._vocab_size = max_length, vocab_size
        self._new: deque[ChainState] = deque()
        self._submitted = 0

    @property
    def idle(self) -> bool:
        """True if all chains have ended."""
        return not (self.scheduler.alive or self._new)

    @property
    def num_chains(self) -> int:
        """Chains that have not ended."""
        return len(self.scheduler.alive) + len(self._new)

    def add(self, state: ChainState) -> None:
        """Take a chain, which starts when its turn comes."""
        self._new.append(state)

    def schedule(self) -> list[ActiveRequest]:
        """Start primary requests, then new chains, then speculative requests, as many as there is room for; returns
        the requests that got a slot.

        A primary request that waits although nothing runs would wait for ever, since only a chain that goes on gives
        pages back; its chain, which asks for more than it was guaranteed, fails.
        """
        scheduled: list[ActiveRequest] = []
        while True:
            scheduled += self.scheduler.schedule_primaries()
            stuck = self.scheduler.waiting_primaries()
            if stuck and self.scheduler.slots:
                return scheduled
            if stuck:
                self._fail(stuck[-1].state, self._out_of_pages(stuck[-1]))
            elif self._too_few_are_free() or not self._start_next():
                return scheduled + self.scheduler.schedule_speculative(within_guarantee=bool(self._new))

    def record(self, active: ActiveRequest, token: int, log_q: float, log_z: float) -> bool:
        """Add a drawn token to a running request; if that ends the request, its chain goes on at once.

        False, and nothing done, for a request that its chain has cancelled within the same step or that was preempted.
        """
        state = active.state
        if state.requests.get(active.tag) is not active:
            return False
        try:
            ended = active.add(token, log_q, log_z)
        except Exception as error:  # noqa: BLE001 - a stop rule is the chain's own code
            self._fail(state, error)
            return True
        if ended is not None:
            assert active.allocation is not None, "what draws has pages"
            handle = active.allocation.handle
            self.scheduler.finish(active)
            self._pool.end(handle, len(active.sequence))
            state.held[handle] = active
            self._advance(state, self._arrival(active, ended, handle))
        return True

    def requeue(self, num_slots: int, num_pages: int) -> None:
        """Go on with so many slots and pages, all of them empty; chains wait to be admitted again, before new ones.

        What a chain holds keeps its handle and its tokens, from which a request that branches there is prefilled;
        requests in flight start again, with the same keys and so with the same tokens.
        """
        self._new.extendleft(reversed(self.scheduler.clear(num_slots)))
        self._pool.reset(num_pages)

    def cancel(self, states: Container[ChainState]) -> None:
        """End those of these chains that have not ended; their futures are cancelled already."""
        gone = [state for state in (*self.scheduler.alive, *self._new) if state in states]
        self._new = deque(state for state in self._new if state not in states)
        for state in gone:
            self._fail(state, CancelledError())

    def fail_all(self, error: BaseException) -> None:
        """End every chain with this error."""
        while self._new:
            self._fail(self._new.popleft(), error)
        for state in list(self.scheduler.alive):
            self._fail(state, error)

    def _too_few_are_free(self) -> bool:
        """Whether so few slots are free that new chains wait; never where nothing runs, since then all of them are."""
        free = self.scheduler.num_slots - len(self.scheduler.alive)
        return free < min(self.scheduler.num_slots // START_SHARE, len(self._new))

    def _start_next(self) -> bool:
        """Start the chain whose turn it is; False if it has to wait."""
        if not self._new:
            return False
        state = self._new[0]
        fits = state.guaranteed <= self._pool.capacity
        if fits and not self.scheduler.admit(state):
            return False
        self._new.popleft()
        if not fits:
            reason = (
                f"an answer needs room for {state.chain.sequences} sequences at once, {state.guaranteed} pages of keys "
                f"and values, and there are {self._pool.capacity}; take fewer candidates, shorter answers or more "
                "slots."
            )
            settings = ("sampler.num_candidates", "task.max_new_tokens", "batch_size")
            self._fail(state, UserError(reason, settings))
        elif not state.requests:  # else it was requeued and goes on where it was
            self._advance(state, None)
        return True

    def _out_of_pages(self, active: ActiveRequest) -> RuntimeError:
        state, pool = active.state, self._pool
        return RuntimeError(
            f"a request needs {active.own_pages} pages of keys and values; {pool.num_free} of {pool.capacity} are "
            f"free and nothing runs that could free more: its chain holds more than the {state.chain.sequences} "
            f"sequences, {state.guaranteed} pages, that it was to need"
        )

    def _idle_slots(self) -> int:
        """Idle slots that no primary request and no new chain will take."""
        free = self.scheduler.num_slots - len(self.scheduler.slots) - len(self.scheduler.waiting_primaries())
        return max(free - self.scheduler.could_admit(self._new), 0) if free > 0 else 0

    def _advance(self, state: ChainState, arrival: tuple[Hashable, Completion] | None) -> None:
        """Send a completion to the chain and carry out its operations, until it waits for a request in flight."""
        arrivals = deque([arrival])
        try:
            while arrivals:
                operations = state.chain.steps.send(arrivals.popleft())
                for operation in operations:
                    cancelled = self._perform(state, operation)
                    if cancelled is not None:
                        arrivals.append(cancelled)
                if not (arrivals or state.requests):
                    if not operations:
                        raise RuntimeError("the chain waits, and has nothing in flight")
                    arrivals.append(None)
            self.scheduler.recount(state)
        except StopIteration as stop:
            self._release(state)
            state.end(stop.value)
        except Exception as error:  # noqa: BLE001 - handed on to what waits for the sample
            self._fail(state, error)

    def _perform(self, state: ChainState, operation: Operation) -> tuple[Hashable, Completion] | None:
        """Carry an operation out; a cancelled request's completion is returned."""
        match operation:
            case Submit(tag, request):
                self._submit(state, tag, request)
            case Keep(handle):
                parent = self._held(state, handle).request.parent
                if parent is not None and parent in state.held:
                    self._pool.drop(parent)
                    del state.held[parent]
            case Drop(handle):
                self._held(state, handle)
                self._pool.drop(handle)
                del state.held[handle]
            case Cancel(tag):
                if tag not in state.requests:
                    raise ValueError(f"nothing with the tag {tag!r} is in flight")
                active = state.requests[tag]
                self._give_up(active)
                return self._arrival(active, "cancelled", None)
            case _:
                raise TypeError(f"a chain yielded {operation!r}, which is no operation")
        return None

    def _submit(self, state: ChainState, tag: Hashable, request: Request) -> None:
        if tag in state.requests:
            raise ValueError(f"the tag {tag!r} is in flight already")
        validate(request, self._max_length, self._vocab_size)
        parent_ref = None
        if request.parent is not None:
            if self._held(state, request.parent).sequence[: len(request.prefix)] != request.prefix:
                raise ValueError("the parent's tokens do not start with the request's prefix")
            if self._pool.reaches(request.parent, len(request.prefix) - 1):
                parent_ref = self._pool.fork(request.parent)
        self._submitted += 1
        active = ActiveRequest(state, tag, request, self._submitted, parent_ref)
        state.requests[tag] = active
        state.full = max(state.full, self._pool.pages_for(0, active.limit))
        self.scheduler.enqueue(active)

    def _held(self, state: ChainState, handle: Handle) -> ActiveRequest:
        """The request of a sequence that the chain holds. Raises ValueError if it does not."""
        if handle not in state.held:
            raise ValueError(f"the chain does not hold sequence {handle}")
        return state.held[handle]

    def _arrival(self, active: ActiveRequest, ended: Ended, handle: Handle | None) -> tuple[Hashable, Completion]:
        """The tag and the completion of a request that has ended."""
        log_q, log_z = np.array([active.log_q, active.log_z], dtype=np.float64)
        tokens = tuple(active.tokens)
        return active.tag, Completion(tokens, log_q, log_z, ended, handle, active.prefilled, self._idle_slots())

    def _give_up(self, active: ActiveRequest) -> None:
        self.scheduler.finish(active)
        if active.allocation is not None:
            self._pool.drop(active.allocation.handle)

    def _release(self, state: ChainState) -> None:
        """Release everything that a chain holds or has in flight."""
        self.scheduler.remove(state)
        for active in list(state.requests.values()):
            self._give_up(active)
        for handle in state.held:
            self._pool.drop(handle)
        state.held.clear()

    def _fail(self, state: ChainState, error: BaseException) -> None:
        self._release(state)
        try:
            state.chain.steps.close()
        except Exception as second:  # noqa: BLE001 - the first error is the one that ended the chain
            error.add_note(f"closing the chain raised {second!r}")
        state.end(error)
