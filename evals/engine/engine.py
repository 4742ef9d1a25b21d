"""The decoding engine: chains in, samples out, on one device. Knows no sampler, no task and no other device.

Chains come from any thread; one thread, or `run` itself, takes them and steps (stepper.py) until none is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from threading import Condition, Thread
from typing import NamedTuple

from evals.config import EngineConfig
from evals.engine.chains import Live
from evals.engine.device import IdleClock, read_memory
from evals.engine.gate import Tokenizer
from evals.engine.model import Model
from evals.engine.planning import SlotChange
from evals.engine.stepper import Stepper
from evals.types import Chain, MemoryReading, Sample


class EngineClosed(Exception):  # noqa: N818 - it is no mistake
    """The engine was closed before this chain ended."""


class EngineCounters(NamedTuple):
    """What an engine has done since it was made, and what it is doing."""

    steps: int
    active_slots: int
    slots: int
    generated_tokens: int
    prefilled_tokens: int
    evicted_requests: int
    """Requests that gave way to others and started again."""
    kv_pages_used: int
    kv_pages: int
    step_seconds: float
    """Time spent in steps."""


class Engine:
    """Slots with continuous refill over a paged model."""

    def __init__(
        self,
        model: Model,
        config: EngineConfig,
        *,
        slots: int | None,
        max_length: int,
        num_pages: int | None = None,
        sequences: int = 2,
    ) -> None:
        """At most `slots` chains, and requests, at once; `max_length` is the longest prompt plus answer in tokens.

        On a GPU the slots are as many of these as its memory has room for; None takes as many as fit and pay (on a CPU
        10). Every slot has room for a state and a draft of full length, and all together for the `sequences` that one
        chain may need at once. With `num_pages`, so many pages of keys and values, nothing is measured.
        Raises UserError if the model fails the self-check or not even one slot fits; ValueError for sizes below 1 or a
        `max_length` beyond the model's context.
        """
        self.model = model
        self._stepper = Stepper(model, config, slots, max_length, num_pages, sequences)
        self._scheduler = self._stepper.scheduler
        self._changed = Condition()
        self._inbox: list[Live] = []
        self._thread: Thread | None = None
        self._closing = False
        self._failure: BaseException | None = None

    @property
    def notes(self) -> str:
        """Where the device's memory goes, for a person; empty where nothing was measured."""
        return self._stepper.notes

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer

    @property
    def execution(self) -> str:
        """How steps run: compiled, graphs or eager (see `accelerate.fastest`); none while they cannot."""
        decoder = self._stepper.decoder
        return "none" if decoder is None else decoder.name

    @property
    def idle(self) -> IdleClock | None:
        """The time that the device has waited for the host; None where steps are not enqueued ahead (eager)."""
        decoder = self._stepper.decoder
        return None if decoder is None else decoder.idle

    @property
    def failure(self) -> BaseException | None:
        """What ended the engine's thread; None while it can still work."""
        return self._failure

    def submit(self, chain: Chain, seed: int) -> Future[Sample]:
        """Take a chain; thread-safe. The future has its sample, or what its chain or the engine raised.

        Raises EngineClosed after `close`, RuntimeError after the engine's thread has failed.
        """
        live = Live(chain, seed)
        with self._changed:
            if self._failure is not None:
                raise RuntimeError("the engine has failed") from self._failure
            if self._closing:
                raise EngineClosed("the engine is closed")
            self._inbox.append(live)
            self._changed.notify()
        return live.future

    def start(self) -> None:
        """Run the loop in a thread of its own."""
        if self._thread is not None:
            raise RuntimeError("the engine has been started already")
        self._thread = Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End after the present step; chains that have not ended fail with EngineClosed. The model is free for another
        engine, and so is the memory that this one held on the device.

        Raises what the engine's thread raised, if it has failed.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        else:
            self._finish(EngineClosed("the engine was closed before the chain ended"))
        if self._failure is not None:
            raise self._failure
        self._stepper.let_go()

    def run(self, chains: Iterable[Chain], seed: int) -> list[Sample]:
        """Samples of these chains, in order, without a thread. Raises the first chain's error after all have ended."""
        if self._thread is not None:
            raise RuntimeError("the engine's thread is running: use submit")
        futures = [self.submit(chain, seed) for chain in chains]
        try:
            while self._take():
                self._stepper.step()
        except BaseException as error:
            self._finish(error)
            raise
        return [future.result() for future in futures]

    def counters(self) -> EngineCounters:
        """May be called from any thread."""
        return EngineCounters(
            steps=self._stepper.steps,
            active_slots=len(self._scheduler.slots),
            slots=self._scheduler.num_slots,
            generated_tokens=self._stepper.generated,
            prefilled_tokens=self._stepper.prefilled,
            evicted_requests=self._scheduler.seating.evicted,
            kv_pages_used=self._stepper.pool.num_used,
            kv_pages=self._stepper.pool.capacity,
            step_seconds=self._stepper.seconds,
        )

    def memory(self) -> MemoryReading:
        """Memory of this process and its device now."""
        return read_memory(self.model.device)

    def take_slot_changes(self) -> list[SlotChange]:
        """The changes since this was last asked; from any thread."""
        changes = self._stepper.slot_changes
        return [changes.popleft() for _ in range(len(changes))]

    def audit(self) -> None:
        """Recount the pages. Raises RuntimeError if a count is wrong; for tests, between runs."""
        self._stepper.pool.audit()

    def _loop(self) -> None:
        error: BaseException = EngineClosed("the engine was closed before the chain ended")
        try:
            while self._wait():
                self._stepper.step()
        except BaseException as failure:  # noqa: BLE001 - handed to every chain, and raised by submit and close
            error = self._failure = failure
        self._finish(error)

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when the engine closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._inbox or not self._scheduler.idle)
        return not self._closing and self._take()

    def _take(self) -> bool:
        """Move new chains to the scheduler; False if there is nothing to do."""
        with self._changed:
            arrived, self._inbox = self._inbox, []
        for live in arrived:
            self._scheduler.add(live)
        return not self._scheduler.idle

    def _finish(self, error: BaseException) -> None:
        """All chains, taken or not, end with this error."""
        self._take()
        self._scheduler.fail_all(error)
