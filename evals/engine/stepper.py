"""What an engine does on its device: seat, prefill, one token for everybody; all of it made anew for other slots.

Every step seats what waits, prefills the prompts that are new, decodes one token for every slot in one packed pass, and
hands finished completions to their chains, which ask for more at once. Prompts are prefilled up to their last token;
that one is fed again as an ordinary decode row, which is also how a request that branches from a held sequence begins.

Where a GPU runs out of memory, what is on the device is made anew for three quarters of the slots, and chains go on
from the tokens that the host holds. The same is done for another number of slots where planning.py asks for it. Knows
no thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from evals.config import EngineConfig
from evals.engine import selfcheck
from evals.engine.accelerate import fastest, prepare, sized
from evals.engine.device import bytes_in_use, out_of_memory, release
from evals.engine.eager import Run, layout, prompt_passes
from evals.engine.kv_cache import PagePool
from evals.engine.model import KeysValues, Model, unwritten
from evals.engine.planning import Demand, Elastic, SlotChange, fewer, table
from evals.engine.scheduler import Scheduler
from evals.engine.seating import Seated
from evals.types import UserError

if TYPE_CHECKING:
    from evals.engine.accelerate import Decoder


class Stepper:
    """Pages, slots and decoder of one engine."""

    def __init__(
        self,
        model: Model,
        config: EngineConfig,
        slots: int | None,
        max_length: int,
        num_pages: int | None,
        sequences: int,
    ) -> None:
        """As `Engine.__init__`."""
        if (slots is not None and slots < 1) or not 1 <= max_length <= model.limits.context_length:
            raise ValueError(f"{slots} slots, longest sequence {max_length} of {model.limits.context_length}")
        self._model = model
        self._layout = layout(model.device)
        if not model.checked:
            selfcheck.check(model)
        prepare(model)
        self._max_pages = PagePool.pages_for(0, max_length)
        self._demand = Demand(slots, sequences, self._max_pages, model.cache_shape.page_bytes)
        plan, self._config = sized(model, config, self._demand, max_length, num_pages)
        self.notes = table(plan, str(model.device))
        """Where the device's memory goes, for a person; empty where nothing was measured."""
        self.pool = PagePool(plan.num_pages, self._layout.share_unit)
        self.scheduler = Scheduler(self.pool, plan.slots, max_length, model.limits.vocab_size)
        self.cache: KeysValues | None = None
        self.decoder: Decoder | None = None
        """None of the two while they have to be made."""
        self.slot_changes = deque[SlotChange]()
        """For another thread to take."""
        self._given_pages = num_pages
        in_use = partial(bytes_in_use, model.device)
        self._elastic = plan.reading and Elastic(plan.reading, self._demand, self._config, in_use)
        while self.decoder is None:
            self._surviving(self._build)
        self.steps = self.generated = self.prefilled = 0
        self.seconds = 0.0
        """Spent in steps."""

    def step(self) -> None:
        """One token for everybody, or what is on the device made anew."""
        began = time.perf_counter()
        self._adapt()
        self._surviving(self._build if self.decoder is None else self._advance)
        self.steps += 1
        self.seconds += time.perf_counter() - began

    def _build(self) -> None:
        """Make what is on the device: keys and values, and the decoder."""
        self.cache = KeysValues(self._model.cache_shape, self.pool.num_pages, self._model.device)
        self._model.attach(self.cache)
        slots = self.scheduler.num_slots
        self.decoder = fastest(self._model, self._config, slots, self._max_pages)
        selfcheck.check_decoder(self._model, self.decoder, slots, self._max_pages, self.pool.num_pages)

    @torch.inference_mode()
    def _advance(self) -> None:
        """Seat, prefill, one token for everybody."""
        assert self.cache is not None, "no step before it is made"
        assert self.decoder is not None, "no step before it is made"
        self._model.attach(self.cache)
        seated = self.scheduler.seat()
        openings = [item.opening for item in seated]
        self.decoder.open(openings)
        for runs in prompt_passes(self._prompts(seated), self._layout, self._config.prefill_tokens):
            self.decoder.prefill(runs)
        self.decoder.open(unwritten(openings))
        for drawn in self.decoder.step(self.scheduler.slots):
            self.generated += self.scheduler.record(*drawn)

    def _prompts(self, seated: Sequence[Seated]) -> list[Run]:
        """The tokens of new prompts, all but the last one and what they share with others."""
        prompts = []
        for running, _ in seated:
            slot = running.slot
            end = len(slot.request.prefix) - 1
            start = end - slot.prefilled
            prompts.append(Run(slot.request.prefix[start:end], start, slot.pages))
            self.prefilled += slot.prefilled
        return prompts

    def _surviving(self, work: Callable[[], None]) -> None:
        """Do `work`; if the device runs out of memory over it, shrink. Raises whatever else it raises."""
        try:
            work()
            return
        except RuntimeError as error:  # until it is gone, its traceback holds what the work had on the device
            reason = out_of_memory(error)
            if reason is None:
                raise
        self._shrink(reason)

    def let_go(self) -> None:
        """Of all that is on the device, the model excepted."""
        self.cache = self.decoder = None
        self._model.detach()
        release(self._model.device)

    def _adapt(self) -> None:
        """To what the device's memory has become."""
        if self._elastic is None:
            return
        slots = self.scheduler.num_slots
        wanted = self._elastic.wanted(slots, self.scheduler.num_chains)
        if wanted != slots:
            self._resize(wanted, "there is room for more" if wanted > slots else "others use the GPU's memory")

    def _shrink(self, reason: str) -> None:
        """Memory has run out: go on with fewer slots. Raises UserError if there is none left to give up."""
        if self._elastic is not None:
            self._elastic.ran_out()
        self._resize(fewer(self.scheduler.num_slots), reason)

    def _resize(self, slots: int, reason: str) -> None:
        """Let go of all that is on the device, to be made for so many slots; all chains wait to enter again.

        Raises UserError if `slots` is 0.
        """
        self.let_go()
        self.slot_changes.append(SlotChange(time.time(), self.scheduler.num_slots, slots, reason))
        if not slots:
            raise UserError(
                f"The GPU has no memory left for even one slot ({reason}); free the GPU, choose a smaller model, or "
                "lower task.max_new_tokens, sampler.num_candidates or engine.prefill_tokens."
            )
        pages = self._demand.num_pages(slots)
        self.scheduler.requeue(slots, pages if self._given_pages is None else min(pages, self._given_pages))
