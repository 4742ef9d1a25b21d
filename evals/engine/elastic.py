"""Slots that follow the memory of a device while an engine runs: fewer before others' use of it does harm, more when it
is free again. Knows no engine; it is asked before every step, and looks at the device now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from evals.config import EngineConfig
from evals.engine.planning import Demand, Reading, fewer, most_slots, size

LOOK_SECONDS = 10.0
"""Between two looks. After memory has run out it is twice as long each time, since a plan was wrong."""
WORTH = 4 / 3
"""So many times the slots of now are worth making anew what is on the device, which takes seconds."""
BUSY = 0.9
"""More slots are of use where so many of those of now are taken."""


class Elastic:
    """How many slots an engine should have, by what is in use on its device."""

    def __init__(
        self,
        reading: Reading,
        demand: Demand,
        config: EngineConfig,
        in_use: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`in_use` tells the bytes in use on the device, by anybody."""
        self._reading, self._demand, self._config = reading, demand, config
        self._in_use, self._clock = in_use, clock
        self._wait = LOOK_SECONDS
        self._next = clock() + self._wait

    def wanted(self, slots: int, chains: int) -> int:
        """Slots for so many `chains`: `slots`, unless it is time to look and there is a reason for another number."""
        if self._clock() < self._next:
            return slots
        self._next = self._clock() + self._wait
        busy = chains >= BUSY * slots
        return adjusted(self._reading, self._demand, self._config, slots, self._in_use(), busy)

    def ran_out(self) -> None:
        """Memory ran out all the same."""
        self._wait *= 2
        self._next = self._clock() + self._wait


def adjusted(reading: Reading, demand: Demand, config: EngineConfig, slots: int, in_use: int, busy: bool) -> int:
    """Slots with which the bytes in use would come to the target, where `in_use` are in use with `slots`; at least 1.

    Fewer only when half of the reserve above the target is gone, more only when that is worth its price.
    """
    limit = int(config.target_utilisation * reading.total)
    own = size(reading, demand, config, slots)
    if in_use - limit > (reading.total - limit) / 2:
        less = fewer(slots)
        while less > 1 and own - size(reading, demand, config, less) < in_use - limit:
            less = fewer(less)
        return max(1, less)
    more = most_slots(reading, demand, config, own + limit - in_use) if busy else slots
    return more if more >= WORTH * slots else slots
