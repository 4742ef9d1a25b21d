"""Which request sits in which row of the device's state, and what the device has to be told. Knows no device.

The device keeps one row of integers per request and advances it by itself: it draws a token, makes it the next input,
and freezes the row at EOS or at the request's limit. The host hears of it one step later. What it then changes (rows
that are free again, rows with a new request) goes to the device in one piece, a *patch*.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evals.engine.chain_state import DecodeState
from evals.engine.kv_cache import SCRATCH

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


class BatchState:
    """Requests take the lowest free row, so that a few requests need few rows."""

    def __init__(self, num_rows: int, max_pages: int) -> None:
        self._columns = TABLE + max_pages
        self._free = list(range(num_rows))
        self._slots: dict[int, DecodeState] = {}

    @property
    def occupied(self) -> list[tuple[int, DecodeState]]:
        """(row, request) of every row in use."""
        return list(self._slots.items())

    @property
    def truncated(self) -> bool:
        """Whether some request in a row draws among its most probable tokens only."""
        return any(slot.request.top_k or slot.request.top_p < 1 for slot in self._slots.values())

    @property
    def height(self) -> int:
        """BatchState that a step has to compute: one more than the highest in use."""
        return max(self._slots, default=-1) + 1

    def update(self, slots: Sequence[DecodeState]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Make the rows hold exactly `slots`; returns the rows [n] that change and what they hold from now on
        [n, TABLE + pages of a row], None if nothing does."""
        present, known = set(slots), set(self._slots.values())
        changed = [row for row, slot in self._slots.items() if slot not in present]
        for row in changed:
            del self._slots[row]
            heapq.heappush(self._free, row)
        for slot in slots:
            if slot not in known:
                row = heapq.heappop(self._free)
                self._slots[row] = slot
                changed.append(row)
        if not changed:
            return None
        changed = sorted(set(changed))
        values = np.full((len(changed), self._columns), SCRATCH, dtype=np.int64)
        for line, row in zip(values, changed, strict=True):
            if row in self._slots:
                fill(line, self._slots[row])
        return np.array(changed), values


def fill(line: NDArray[np.int64], slot: DecodeState) -> None:
    """The state of a request that is about to be fed the last token of its prefix; `line` holds zeros."""
    request = slot.request
    eos = sorted(slot.prompt.eos_ids)[:NUM_EOS]
    line[[TOKEN, POSITION, EXCLUDE, ORIGIN, LIVE]] = slot.token, slot.position, slot.exclude, request.origin, 1
    line[LIMIT] = len(request.prefix) + request.max_new - 2
    line[ALPHA] = np.float64(request.alpha).view(np.int64)
    line[TOP_K], line[TOP_P] = request.top_k, np.float64(request.top_p).view(np.int64)
    line[SEED] = np.uint64(slot.seed).view(np.int64)
    line[KEY:TABLE] = request.key
    line[EOS:KEY] = eos + [-1] * (NUM_EOS - len(eos))
    line[TABLE : TABLE + len(slot.pages)] = slot.pages
