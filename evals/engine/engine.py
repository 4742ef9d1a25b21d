"""The decoding engine: turns chains into samples with one model on one device.

Chains come from any thread; one thread, or `run` itself, takes them and steps until none is left. Every step schedules
requests that wait, prefills new prompts, decodes one token for every slot in one packed pass, and hands completions
to their chains, which submit more at once. Prompts are prefilled up to their last token; that one is fed again as an
ordinary decode row, which is also how a request that branches from a held sequence begins.

Where a GPU runs out of memory, what is on the device is made anew for three quarters of the slots, and chains go on
from the tokens that the host holds. The same happens where sizing/slots.py asks for another number of slots.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from threading import Condition, Thread
from typing import TYPE_CHECKING, NamedTuple

import torch

from evals.config import EngineConfig
from evals.engine.chain_runner import ChainRunner
from evals.engine.chain_state import ChainState
from evals.engine.device import IdleClock, bytes_in_use, out_of_memory, read_memory, release
from evals.engine.eager_decoder import Chunk, layout, prompt_passes
from evals.engine.execution import make_decoder, size_slots
from evals.engine.kv_cache import PagePool
from evals.engine.model import Model, pending_copies
from evals.sizing.slots import Demand, SlotAdjuster, SlotChange, SlotPlan, fewer_slots, table
from evals.types import Chain, MemoryReading, Sample, UserError

if TYPE_CHECKING:
    from evals.engine.execution import Decoder


MEMORY_SECONDS = 0.2
"""A reading takes a third of a millisecond, in which no step is enqueued, and every record has one."""
CLOSED = "the engine was closed before the chain ended"


class EngineCounters(NamedTuple):
    """What an engine has done since it was made, and what is in use now."""

    steps: int
    active_slots: int
    slots: int
    generated_tokens: int
    prefilled_tokens: int
    preempted_requests: int
    """Requests that were preempted and started again."""
    cancelled_chains: int
    """Chains whose futures were cancelled before they ended."""
    kv_pages_used: int
    kv_pages: int
    step_seconds: float
    """Time spent in steps."""


class Engine:
    """Runs chains on a paged model, in slots that are refilled as soon as a request ends (continuous batching)."""

    def __init__(self, model: Model, config: EngineConfig, demand: Demand, plan: SlotPlan, max_length: int) -> None:
        """An engine of the slots and pages of `plan`, without a decoder yet; see `build`."""
        self.model, self._config, self._demand, self._plan = model, config, demand, plan
        self._layout, self._max_length = layout(model.device), max_length
        self._pool = PagePool(plan.num_pages, self._layout.share_unit)
        self._runner = ChainRunner(self._pool, plan.slots, max_length, model.vocab_size)
        in_use = partial(bytes_in_use, model.device)
        self._elastic = plan.reading and SlotAdjuster(plan.reading, demand, config, in_use)
        self._decoder: Decoder | None = None  # while it has to be made
        self._slot_changes = deque[SlotChange]()
        self._steps = self._generated = self._prefilled = 0
        self._seconds = 0.0
        self._memory, self._memory_at = MemoryReading(), -MEMORY_SECONDS
        self.failure: BaseException | None = None
        """What ended the engine's thread; None while it can still work."""
        self._changed = Condition()
        self._inbox: list[ChainState] = []
        self._cancelled: dict[ChainState, None] = {}  # since the last step
        self._num_cancelled = 0
        self._thread: Thread | None = None
        self._closing = False

    @classmethod
    def build(
        cls,
        model: Model,
        config: EngineConfig,
        *,
        slots: int | None,
        max_length: int,
        num_pages: int | None = None,
        sequences: int = 2,
    ) -> Engine:
        """Measure how many slots fit, make a decoder for them, compiled and captured where that works, and check it.

        The model is one that `execution.prepare` returned. At most `slots` chains, and requests, run at once;
        `max_length` is the longest prompt plus answer in tokens. On a GPU the slots are as many of these as its memory
        has room for; None takes as many as fit and pay (on a CPU 10). Every slot has room for an answer and a proposal
        of full length, and all together for the `sequences` that one chain may need at once. With `num_pages`, so many
        pages of keys and values, nothing is measured.
        Raises UserError if the decoder fails its check or not even one slot fits; ValueError for sizes below 1, a
        `max_length` beyond the model's context or a model that is not prepared.
        """
        if (slots is not None and slots < 1) or not 1 <= max_length <= model.context_length:
            raise ValueError(f"{slots} slots, longest sequence {max_length} of {model.context_length}")
        if not model.prepared:
            raise ValueError("the model has not been prepared")
        demand = Demand(slots, sequences, PagePool.pages_for(0, max_length), model.cache_shape.page_bytes)
        plan, config = size_slots(model, config, demand, max_length, num_pages)
        engine = cls(model, config, demand, plan, max_length)
        while engine._decoder is None:
            engine._with_oom_handling(engine._make_decoder)
        return engine

    @property
    def notes(self) -> str:
        """How the device's memory is divided, as a table to print; empty where nothing was measured."""
        return table(self._plan, str(self.model.device))

    @property
    def execution(self) -> str:
        """How steps run: compiled, graphs, eager (`execution.make_decoder`); none while there is no decoder."""
        return "none" if self._decoder is None else self._decoder.name

    @property
    def idle(self) -> IdleClock | None:
        """Clock of the time that the device waited for the host; None where steps are not enqueued ahead (eager)."""
        return None if self._decoder is None else self._decoder.idle

    def submit(self, chain: Chain) -> Future[Sample]:
        """Take a chain; thread-safe. The future gets its sample, or what the chain or the engine raised.

        Its `cancel()` ends the chain at the engine's next step, and frees the chain's slots and pages.
        Raises RuntimeError after `close`, and after the engine's thread has failed.
        """
        state = ChainState(chain, self._max_length)
        with self._changed:
            if self.failure is not None:
                raise RuntimeError("the engine has failed") from self.failure
            if self._closing:
                raise RuntimeError(CLOSED)
            self._inbox.append(state)
            self._changed.notify()
        state.future.add_done_callback(lambda future: self._note_cancel(state) if future.cancelled() else None)
        return state.future

    def start(self) -> None:
        """Run the chains in a thread of their own from now on."""
        if self._thread is not None:
            raise RuntimeError("the engine has been started already")
        self._thread = Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End after the present step; chains that have not ended fail with a RuntimeError. The model can be used by
        another engine, and this one's memory on the device is freed.

        Raises what the engine's thread raised, if it has failed.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        else:
            self._finish(RuntimeError(CLOSED))
        if self.failure is not None:
            raise self.failure
        self._free_device()

    def run(self, chains: Iterable[Chain]) -> list[Sample]:
        """Run chains without a thread; returns their samples in order. Raises the first chain's error at the end."""
        if self._thread is not None:
            raise RuntimeError("the engine's thread is running: use submit")
        futures = [self.submit(chain) for chain in chains]
        try:
            while self._take():
                self._step()
        except BaseException as error:
            self._finish(error)
            raise
        return [future.result() for future in futures]

    def counters(self) -> EngineCounters:
        """The counters now; may be called from any thread."""
        return EngineCounters(
            steps=self._steps,
            active_slots=len(self._runner.scheduler.slots),
            slots=self._runner.scheduler.num_slots,
            generated_tokens=self._generated,
            prefilled_tokens=self._prefilled,
            preempted_requests=self._runner.scheduler.preempted,
            cancelled_chains=self._num_cancelled,
            kv_pages_used=self._pool.num_used,
            kv_pages=self._pool.capacity,
            step_seconds=self._seconds,
        )

    def memory(self) -> MemoryReading:
        """Memory in use by this process and its device, read at most every MEMORY_SECONDS; from any thread."""
        if (now := time.monotonic()) - self._memory_at >= MEMORY_SECONDS:
            self._memory, self._memory_at = read_memory(self.model.device), now
        return self._memory

    def take_slot_changes(self) -> list[SlotChange]:
        """Changes of the number of slots since the last call; may be called from any thread."""
        return [self._slot_changes.popleft() for _ in range(len(self._slot_changes))]

    def _note_cancel(self, state: ChainState) -> None:
        with self._changed:
            self._cancelled[state] = None
            self._num_cancelled += 1
            self._changed.notify()

    def _loop(self) -> None:
        try:
            while not self._closing:
                with self._changed:  # asleep until there is something to do
                    self._changed.wait_for(
                        lambda: self._closing or self._inbox or self._cancelled or not self._runner.idle
                    )
                if not self._closing and self._take():
                    self._step()
        except BaseException as failure:  # noqa: BLE001 - handed to every chain, and raised by submit and close
            self.failure = failure
        self._finish(self.failure or RuntimeError(CLOSED))

    def _take(self) -> bool:
        """Move new chains to the chain runner, and cancelled ones out of it; False if there is nothing to do."""
        with self._changed:  # both at once: what was cancelled has arrived
            arrived, self._inbox = self._inbox, []
            cancelled, self._cancelled = self._cancelled, {}
        for state in arrived:
            self._runner.add(state)
        if cancelled:
            self._runner.cancel(cancelled)
        return not self._runner.idle

    def _finish(self, error: BaseException) -> None:
        self._take()
        self._runner.fail_all(error)

    def _step(self) -> None:
        """Draw one token for every slot, or make anew what is on the device."""
        began = time.perf_counter()
        slots = self._runner.scheduler.num_slots
        if self._elastic is not None:
            wanted = self._elastic.wanted(slots, self._runner.num_chains)
            if wanted != slots:
                self._resize(wanted, "there is room for more" if wanted > slots else "others use the GPU's memory")
        self._with_oom_handling(self._make_decoder if self._decoder is None else self._advance)
        self._steps += 1
        self._seconds += time.perf_counter() - began

    def _make_decoder(self) -> None:
        slots, pages = self._runner.scheduler.num_slots, self._demand.pages
        self._decoder = make_decoder(self.model, self._config, slots, pages, self._pool.num_pages)

    @torch.inference_mode()
    def _advance(self) -> None:
        assert self._decoder is not None
        self.model.attach(self._decoder.cache)
        scheduled = self._runner.schedule()
        allocations = [active.allocation for active in scheduled if active.allocation is not None]
        self._decoder.open(allocations)
        prompts = []  # without their last tokens and what they share with others
        for active in scheduled:
            end = len(active.request.prefix) - 1
            start = end - active.prefilled
            prompts.append(Chunk(active.request.prefix[start:end], start, active.pages))
            self._prefilled += active.prefilled
        for chunks in prompt_passes(prompts, self._layout, self._config.prefill_tokens):
            self._decoder.prefill(chunks)
        self._decoder.open(pending_copies(allocations))
        for drawn in self._decoder.step(self._runner.scheduler.slots):
            self._generated += self._runner.record(*drawn)

    def _with_oom_handling(self, work: Callable[[], None]) -> None:
        """Do `work`; prepare for fewer slots if the device runs out of memory. Other errors are raised."""
        try:
            work()
            return
        except RuntimeError as error:  # its traceback holds what the work had on the device: be rid of it first
            reason = out_of_memory(error)
            if reason is None:
                raise
        if self._elastic is not None:
            self._elastic.ran_out()
        self._resize(fewer_slots(self._runner.scheduler.num_slots), reason)

    def _free_device(self) -> None:
        self._decoder = None
        self.model.detach()
        release(self.model.device)

    def _resize(self, slots: int, reason: str) -> None:
        """Free all that is on the device, to be made for so many slots; all chains wait to be admitted again.

        Raises UserError if `slots` is 0.
        """
        self._free_device()
        self._slot_changes.append(SlotChange(time.time(), self._runner.scheduler.num_slots, slots, reason))
        if not slots:
            raise UserError(
                f"The GPU has no memory left for even one slot ({reason}); free the GPU, choose a smaller model, or "
                "lower task.max_new_tokens, sampler.num_candidates or engine.prefill_tokens."
            )
        pages = self._demand.num_pages(slots)
        self._runner.requeue(slots, pages if self._elastic else min(pages, self._plan.num_pages))
