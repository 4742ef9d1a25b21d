"""How many slots fit a device, computed from what was measured on it.

All that a run needs must fit under a target share of the device's whole memory, what others hold included:

    others + weights + K/V(slots) + activations(slots) + graphs(slots) <= target * total

Keys and values are a state and a proposal of full length for every slot. Activations are the larger of the largest
prompt pass and the largest step, which is as large as it has rows. Passes captured as CUDA graphs keep activations of
their own, while capturing another one takes the ordinary ones.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from evals.config import AUTO_SLOTS, EngineConfig
from evals.types import UserError

GRAPH_BYTES = 256 << 20
"""What the CUDA driver keeps for the graphs of a run, beside their activations (an estimate for up to 18 graphs)."""
GIB = 2**30
WAY_OUT = (
    "free the GPU, raise engine.target_utilisation, or lower task.max_new_tokens, sampler.num_candidates or "
    "engine.prefill_tokens"
)
"""What helps where not even one slot fits a run."""


class Reading(NamedTuple):
    """Memory of a device in bytes, measured while its largest passes ran once."""

    total: int
    others: int
    """Held by the CUDA context and by other processes."""
    weights: int
    rows: int
    """Rows of the step that was run; a larger one, and its prompt pass, take more in proportion."""
    prompts: int
    """Peak of the largest prompt pass beyond the weights."""
    step: int
    """Peak of the step beyond the weights."""


class Demand(NamedTuple):
    """What an engine is asked to hold."""

    slots: int | None
    """At most so many; None: as many as fit and are of use."""
    sequences: int
    """Sequences of full length that one chain may need at once."""
    pages: int
    """Pages of a sequence of full length."""
    page_bytes: int

    def num_pages(self, slots: int) -> int:
        """Pages for so many slots, the scratch page included."""
        return max(2 * slots, self.sequences) * self.pages + 1


class SlotPlan(NamedTuple):
    """Slots and pages for an engine, and where the device's memory goes if they were planned from a reading."""

    slots: int
    num_pages: int
    parts: dict[str, int]
    """Bytes by purpose, in the order of the table; they add up to the device's memory."""
    lowered_from: int | None = None
    """The number asked for, where it does not fit."""
    reading: Reading | None = None
    """The reading it was planned from; None where nothing was measured."""


class SlotChange(NamedTuple):
    """A change of an engine's number of slots; a new number of 0: it could not go on."""

    time: float
    """Unix seconds."""
    old: int
    new: int
    reason: str


def plan_slots(reading: Reading, demand: Demand, config: EngineConfig, way_out: str = WAY_OUT) -> SlotPlan:
    """The largest number of slots, up to the one asked for, whose run stays under `config.target_utilisation`.

    Raises UserError where not even one slot fits; `way_out` says what helps.
    """
    limit = int(config.target_utilisation * reading.total)
    room = limit - reading.others - reading.weights
    slots = most_slots(reading, demand, config, room)
    if not slots:
        first = size(reading, demand, config, 1)
        raise UserError(
            f"Not even one slot fits the GPU: the model's weights take {gib(reading.weights)}, others hold "
            f"{gib(reading.others)}, one slot needs {gib(first)}, and {config.target_utilisation:.0%} "
            f"of {gib(reading.total)} may be used; {way_out}."
        )
    taken = {"context and others": reading.others, "weights": reading.weights, **parts(reading, demand, config, slots)}
    taken["reserve"] = reading.total - limit
    taken["free"] = reading.total - sum(taken.values())
    lowered = demand.slots is not None and slots < demand.slots
    return SlotPlan(slots, demand.num_pages(slots), taken, demand.slots if lowered else None, reading)


def parts(reading: Reading, demand: Demand, config: EngineConfig, slots: int) -> dict[str, int]:
    """Bytes of what grows with the slots, by purpose."""
    step = max(reading.step, reading.rows * demand.page_bytes)  # every slot may copy a page at once
    most = max(reading.prompts * max(slots, reading.rows), step * slots)
    activations = -(-most // reading.rows)
    graphs = 0 if config.execution == "eager" else activations + GRAPH_BYTES
    return {"K/V": demand.num_pages(slots) * demand.page_bytes, "activations": activations, "graphs": graphs}


def size(reading: Reading, demand: Demand, config: EngineConfig, slots: int) -> int:
    """Bytes of all that grows with the slots."""
    return sum(parts(reading, demand, config, slots).values())


def most_slots(reading: Reading, demand: Demand, config: EngineConfig, room: int) -> int:
    """The largest number of slots, up to the one asked for, whose parts take at most `room` bytes; maybe 0."""
    wanted = AUTO_SLOTS["cuda"] if demand.slots is None else demand.slots
    return bisect_right(range(1, wanted + 1), room, key=lambda slots: size(reading, demand, config, slots))


def plan_unmeasured(demand: Demand, num_pages: int | None) -> SlotPlan:
    """Slots and pages as they were asked for, where nothing is measured: on a CPU, or with a given number of pages."""
    slots = AUTO_SLOTS["cpu"] if demand.slots is None else demand.slots
    return SlotPlan(slots, demand.num_pages(slots) if num_pages is None else num_pages, {})


def table(plan: SlotPlan, device: str) -> str:
    """The plan as lines to print; empty where nothing was measured."""
    if not plan.parts:
        return ""
    lines = [f"{plan.slots} slots on {device}, {gib(sum(plan.parts.values()))}, of which:"]
    lines += [f"  {name:<18} {bytes_ / GIB:8.2f} GiB" for name, bytes_ in plan.parts.items()]
    if plan.lowered_from is not None:
        lines.append(f"Warning: {plan.lowered_from} slots (batch_size) do not fit; going on with {plan.slots}.")
    return "\n".join(lines)


def fewer_slots(slots: int) -> int:
    """Three quarters of `slots`, rounded down, above 8 to a multiple of 8: 64, 48, 32, 24, 16, 8, 6, 4, 3, 2, 1, 0."""
    less = slots * 3 // 4
    return less // 8 * 8 if less > 8 else less


def gib(num_bytes: int) -> str:
    """Bytes as text in GiB."""
    return f"{num_bytes / GIB:.2f} GiB"


LOOK_SECONDS = 10.0
"""Time between two looks at the memory in use; doubled each time that memory runs out, since a plan was wrong."""
WORTH = 4 / 3
"""So many times the present slots are worth making anew what is on the device, which takes seconds."""
BUSY = 0.9
"""More slots are of use where this share of the present ones is taken."""


class SlotAdjuster:
    """Decides now and then how many slots an engine should have, by the memory in use on its device."""

    def __init__(self, reading: Reading, demand: Demand, config: EngineConfig, in_use: Callable[[], int]) -> None:
        """`in_use` returns the bytes in use on the device, by all processes."""
        self._reading, self._demand, self._config, self._in_use = reading, demand, config, in_use
        self._wait = LOOK_SECONDS
        self._next = time.monotonic() + self._wait

    def wanted(self, slots: int, chains: int) -> int:
        """The slots to have for `chains` chains: `slots`, unless a look is due and finds a reason for another."""
        if time.monotonic() < self._next:
            return slots
        self._next = time.monotonic() + self._wait
        busy = chains >= BUSY * slots
        return adjusted(self._reading, self._demand, self._config, slots, self._in_use(), busy)

    def ran_out(self) -> None:
        """Note that memory ran out all the same: the next look is later."""
        self._wait *= 2
        self._next = time.monotonic() + self._wait


def adjusted(reading: Reading, demand: Demand, config: EngineConfig, slots: int, in_use: int, busy: bool) -> int:
    """The slots that would bring the device to its target, where `in_use` bytes are in use with `slots`; at least 1.

    Fewer only when half of the reserve above the target is gone, more only from WORTH times the slots on.
    """
    limit = int(config.target_utilisation * reading.total)
    own = size(reading, demand, config, slots)
    if in_use - limit > (reading.total - limit) / 2:
        less = fewer_slots(slots)
        while less > 1 and own - size(reading, demand, config, less) < in_use - limit:
            less = fewer_slots(less)
        return max(1, less)
    more = most_slots(reading, demand, config, own + limit - in_use) if busy else slots
    return more if more >= WORTH * slots else slots
