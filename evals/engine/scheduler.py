"""Chains and slots: who runs, who waits, who owns which sequence. Plain Python: no device, no thread.

A chain is started when fewer than `num_slots` chains are alive. Its requests are seated in order of arrival, as soon as
a slot and the pages up to the request's limit are free; a chain may have several in flight. When a chain ends, in
whatever way, everything it holds is released.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from evals.engine.kv_cache import Opening, PagePool
from evals.engine.request import Slot, validate
from evals.types import (
    Cancel,
    Chain,
    Completion,
    Drop,
    Ended,
    Handle,
    Keep,
    Operation,
    Request,
    Sample,
    Submit,
)


class Live:
    """A chain with its future and what it owns."""

    def __init__(self, chain: Chain, seed: int) -> None:
        self.chain, self.seed = chain, seed
        self.future: Future[Sample] = Future()
        self.held: dict[Handle, tuple[int, ...]] = {}
        """Tokens of every sequence that the chain may name."""
        self.waiting: dict[Hashable, Waiting] = {}
        self.running: dict[Hashable, Running] = {}


class Waiting(NamedTuple):
    """A request without a slot. `lease` holds what it shares with its parent, so that the parent may be dropped."""

    live: Live
    tag: Hashable
    request: Request
    lease: Handle | None


class Running(NamedTuple):
    """A request in a slot."""

    live: Live
    slot: Slot
    handle: Handle


class Seated(NamedTuple):
    """A request that has just got its slot: its pages have to be prepared, and filled unless it has a parent."""

    running: Running
    opening: Opening


class Scheduler:
    """The state of an engine apart from its device. Errors of a chain end that chain and nothing else."""

    def __init__(self, pool: PagePool, num_slots: int, max_length: int, vocab_size: int) -> None:
        self.pool, self.num_slots = pool, num_slots
        self._max_length, self._vocab_size = max_length, vocab_size
        self._new: deque[Live] = deque()
        self._queue: deque[Waiting] = deque()
        self._alive: set[Live] = set()
        self.slots: list[Running] = []
        """What runs, in order of seating."""

    @property
    def idle(self) -> bool:
        """True if nothing runs, waits or is to be started."""
        return not (self._alive or self._new)

    def add(self, live: Live) -> None:
        """Take a chain; it starts when its turn comes."""
        self._new.append(live)

    def seat(self) -> list[Seated]:
        """Start chains and seat requests, as many as there is room for, in order of arrival.

        A request that waits for pages while nothing runs waits for ever, since only a chain that goes on gives pages
        back; its chain fails.
        """
        seated: list[Seated] = []
        while True:
            self._start_chains()
            while self._queue and len(self.slots) < self.num_slots and self._fits(self._queue[0]):
                seated.append(self._open(self._queue.popleft()))
            if self.slots or not self._queue:
                return seated
            head = self._queue[0]
            self._fail(
                head.live,
                RuntimeError(
                    f"a request needs {self._needs(head)} pages of keys and values; {self.pool.num_free} of "
                    f"{self.pool.capacity} are free and nothing runs that could free more"
                ),
            )

    def record(self, running: Running, token: int, log_q: float, log_z: float) -> None:
        """A drawn token of a running request; if that ends it, its chain goes on at once.

        A request that its chain has cancelled within the same step is passed over.
        """
        live, slot = running.live, running.slot
        if live.running.get(slot.tag) is not running:
            return
        try:
            ended = slot.add(token, log_q, log_z)
        except Exception as error:  # noqa: BLE001 - a stop rule is the chain's own code
            self._fail(live, error)
            return
        if ended is not None:
            self._leave(running)
            tokens = slot.request.prefix + tuple(slot.tokens)
            self.pool.end(running.handle, len(tokens))
            live.held[running.handle] = tokens
            self._advance(live, (slot.tag, completion(slot, ended, running.handle)))

    def fail_all(self, error: BaseException) -> None:
        """Every chain ends with this error."""
        while self._new:
            live = self._new.popleft()
            if live.future.set_running_or_notify_cancel():
                self._alive.add(live)
        for live in list(self._alive):
            self._fail(live, error)

    def _start_chains(self) -> None:
        while self._new and len(self._alive) < self.num_slots:
            live = self._new.popleft()
            if live.future.set_running_or_notify_cancel():
                self._alive.add(live)
                self._advance(live, None)
            else:
                live.chain.steps.close()

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
                if not (arrivals or live.running or live.waiting):
                    if not operations:
                        raise RuntimeError("the chain waits, and has nothing in flight")
                    arrivals.append(None)
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
                parent = self.pool.keep(handle)
                if parent is not None:
                    del live.held[parent]
            case Drop(handle):
                self._own(live, handle)
                self.pool.drop(handle)
                del live.held[handle]
            case Cancel(tag):
                return self._cancel(live, tag)
            case _:
                raise TypeError(f"a chain yielded {operation!r}, which is no operation")
        return None

    def _submit(self, live: Live, tag: Hashable, request: Request) -> None:
        if tag in live.waiting or tag in live.running:
            raise ValueError(f"the tag {tag!r} is in flight already")
        validate(request, self._max_length, self._vocab_size)
        lease = None
        if request.parent is not None:
            self._own(live, request.parent)
            if live.held[request.parent][: len(request.prefix)] != request.prefix:
                raise ValueError("the parent's tokens do not start with the request's prefix")
            lease = self.pool.fork(request.parent)
        waiting = Waiting(live, tag, request, lease)
        live.waiting[tag] = waiting
        self._queue.append(waiting)
        if self._needs(waiting) > self.pool.capacity:
            raise ValueError(f"a request needs {self._needs(waiting)} pages, the pool has {self.pool.capacity}")

    def _own(self, live: Live, handle: Handle) -> None:
        if handle not in live.held:
            raise ValueError(f"the chain does not hold sequence {handle}")

    def _cancel(self, live: Live, tag: Hashable) -> tuple[Hashable, Completion] | None:
        if tag in live.waiting:
            waiting = live.waiting[tag]
            self._forget(waiting)
            slot = Slot(tag, waiting.request, live.chain.prompt, live.seed)
        elif tag in live.running:
            running = live.running[tag]
            slot = running.slot
            self._leave(running)
            self.pool.drop(running.handle)
        else:
            raise ValueError(f"nothing with the tag {tag!r} is in flight")
        return tag, completion(slot, "cancelled", None)

    def _needs(self, waiting: Waiting) -> int:
        request = waiting.request
        length = len(request.prefix)
        start = 0 if waiting.lease is None else length - 1
        return self.pool.pages_for(start, length + request.max_new)

    def _fits(self, waiting: Waiting) -> bool:
        return self._needs(waiting) <= self.pool.num_free

    def _open(self, waiting: Waiting) -> Seated:
        live, tag, request, lease = waiting
        length = len(request.prefix)
        start = 0 if lease is None else length - 1
        opening = self.pool.open(lease, start, length + request.max_new, replaces=request.parent)
        del live.waiting[tag]
        if lease is not None:
            self.pool.drop(lease)
        slot = Slot(tag, request, live.chain.prompt, live.seed)
        slot.pages = opening.pages
        slot.prefilled = 0 if lease is not None else length - 1
        running = Running(live, slot, opening.handle)
        live.running[tag] = running
        self.slots.append(running)
        return Seated(running, opening)

    def _leave(self, running: Running) -> None:
        del running.live.running[running.slot.tag]
        self.slots.remove(running)

    def _forget(self, waiting: Waiting) -> None:
        del waiting.live.waiting[waiting.tag]
        self._queue.remove(waiting)
        if waiting.lease is not None:
            self.pool.drop(waiting.lease)

    def _release(self, live: Live) -> None:
        """Give back everything that a chain holds or has in flight."""
        self._alive.discard(live)
        for waiting in list(live.waiting.values()):
            self._forget(waiting)
        for running in list(live.running.values()):
            self._leave(running)
            self.pool.drop(running.handle)
        for handle in live.held:
            self.pool.drop(handle)
        live.held.clear()

    def _fail(self, live: Live, error: BaseException) -> None:
        self._release(live)
        try:
            live.chain.steps.close()
        except Exception as second:  # noqa: BLE001 - the first error is the one that ended the chain
            error.add_note(f"closing the chain raised {second!r}")
        live.future.set_exception(error)


def completion(slot: Slot, ended: Ended, handle: Handle | None) -> Completion:
    """What a slot has drawn, as its chain hears of it."""
    return Completion(
        tokens=tuple(slot.tokens),
        log_q=np.array(slot.log_q, dtype=np.float64),
        log_z=np.array(slot.log_z, dtype=np.float64),
        ended=ended,
        handle=handle,
        prefilled=slot.prefilled,
    )
