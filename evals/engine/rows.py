"""Which request sits in which row of the device's state, and what the device has to be told. Knows no device.

The device keeps one row of integers per request and advances it by itself: it draws a token, makes it the next input,
and freezes the row at EOS or at the request's limit. The host hears of it one step later. What it then changes (rows
that are free again, rows with a new request) goes to the device in one piece, a *patch*.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.engine.chains import Running
from evals.engine.kv_cache import SCRATCH
from evals.types import Handle

(TOKEN, POSITION, LIMIT, LIVE, EXCLUDE, ALPHA, TOP_K, TOP_P, SEED, ORIGIN, EOS) = range(11)
"""What a row's integers are, all int64. ALPHA and TOP_P hold the bits of a float64, SEED those of an unsigned integer;
LIMIT is the position of the last token to be fed; ORIGIN the prompt's length; EOS the first of `NUM_EOS`, -1 where
there are fewer."""
NUM_EOS = 4
"""EOS ids that the device knows; a model with more is stopped by the host, one step later."""
KEY = EOS + NUM_EOS
"""First of the three words of the random key."""
TABLE = KEY + 3
"""First page number."""


class Patch(NamedTuple):
    """Rows of the device's state that change."""

    rows: NDArray[np.int64]
    """[n]"""
    values: NDArray[np.int64]
    """[n, TABLE + pages of a row]"""


class Rows:
    """Requests take the lowest free row, so that a few requests need few rows."""

    def __init__(self, num_rows: int, max_pages: int) -> None:
        self._columns = TABLE + max_pages
        self._free = list(range(num_rows))
        self._row: dict[Handle, int] = {}
        self._running: dict[int, Running] = {}

    @property
    def occupied(self) -> list[tuple[int, Running]]:
        """(row, request) of every row in use."""
        return list(self._running.items())

    @property
    def truncated(self) -> bool:
        """Whether some request in a row draws among its most probable tokens only."""
        return any(r.slot.request.top_k or r.slot.request.top_p < 1 for r in self._running.values())

    @property
    def height(self) -> int:
        """Rows that a step has to compute: one more than the highest in use."""
        return max(self._running, default=-1) + 1

    def update(self, slots: Sequence[Running]) -> Patch | None:
        """Make the rows hold exactly `slots`; returns what the device has to be told, None if nothing."""
        present = {running.handle for running in slots}
        freed = [row for handle, row in self._row.items() if handle not in present]
        for row in freed:
            del self._row[self._running.pop(row).handle]
            heapq.heappush(self._free, row)
        taken = []
        for running in slots:
            if running.handle not in self._row:
                row = heapq.heappop(self._free)
                self._row[running.handle], self._running[row] = row, running
                taken.append(row)
        changed = sorted({*freed, *taken})
        if not changed:
            return None
        values = np.full((len(changed), self._columns), SCRATCH, dtype=np.int64)
        for line, row in zip(values, changed, strict=True):
            if row in self._running:
                fill(line, self._running[row])
        return Patch(np.array(changed), values)


def fill(line: NDArray[np.int64], running: Running) -> None:
    """The state of a request that is about to be fed the last token of its prefix; `line` holds zeros."""
    slot = running.slot
    request, prompt = slot.request, running.live.chain.prompt
    line[[TOKEN, POSITION, EXCLUDE, ORIGIN, LIVE]] = slot.token, slot.position, slot.exclude, request.origin, 1
    line[LIMIT] = len(request.prefix) + request.max_new - 2
    line[ALPHA] = np.float64(request.alpha).view(np.int64)
    line[TOP_K], line[TOP_P] = request.top_k, np.float64(request.top_p).view(np.int64)
    line[SEED] = np.uint64(running.live.seed).view(np.int64)
    line[KEY:TABLE] = request.key
    line[EOS:KEY] = list(padded(prompt.eos_ids, NUM_EOS))
    line[TABLE : TABLE + len(slot.pages)] = slot.pages


def padded(ids: Iterable[int], count: int) -> list[int]:
    """The first `count` ids in order, -1 where there are fewer."""
    first = sorted(ids)[:count]
    return [*first, *[-1] * (count - len(first))]
