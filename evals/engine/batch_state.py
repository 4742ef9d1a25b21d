"""The host's side of the batch state: which request has which row on the device, and which rows have to be changed.

The device keeps one row of integers per request and advances it by itself: it draws a token, makes it the next input,
and freezes the row at EOS or at the request's limit. The host sees the token one step later. What it then changes (rows
that are free again, rows with a new request) goes to the device in one transfer, a *patch*.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evals.engine.chain_state import DecodeState
from evals.engine.kv_cache import SCRATCH

(TOKEN, POSITION, LIMIT, LIVE, EXCLUDE, ALPHA, TOP_K, TOP_P, SEED, ORIGIN, EOS) = range(11)
"""Columns of a row, all int64. ALPHA and TOP_P hold the bits of a float64, SEED those of an unsigned integer;
LIMIT is the position of the last token to be fed; ORIGIN the prompt's length; EOS the first of `NUM_EOS`, -1 where
there are fewer."""
NUM_EOS = 4
"""EOS ids that the device knows; a model with more is stopped by the host, one step later."""
KEY = EOS + NUM_EOS
"""Column of the first of the three words of the random key."""
TABLE = KEY + 3
"""Column of the first page number."""


class BatchState:
    """Assigns requests to rows, always the lowest free one, so that a few requests need few rows."""

    def __init__(self, num_rows: int, max_pages: int) -> None:
        self._columns = TABLE + max_pages
        self._free = list(range(num_rows))
        self._states: dict[int, DecodeState] = {}

    @property
    def occupied(self) -> list[tuple[int, DecodeState]]:
        """(row, request) of every row in use."""
        return list(self._states.items())

    @property
    def truncated(self) -> bool:
        """Whether a request in a row has top_k or top_p."""
        return any(state.request.top_k or state.request.top_p < 1 for state in self._states.values())

    @property
    def height(self) -> int:
        """Number of rows that a step has to compute: up to the highest in use."""
        return max(self._states, default=-1) + 1

    def update(self, states: Sequence[DecodeState]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Make the rows hold exactly `states`; returns the patch, that is the rows [n] that change and what they hold
        from now on [n, TABLE + pages of a row], or None if no row changes."""
        present, known = set(states), set(self._states.values())
        changed = [row for row, state in self._states.items() if state not in present]
        for row in changed:
            del self._states[row]
            heapq.heappush(self._free, row)
        for state in states:
            if state not in known:
                row = heapq.heappop(self._free)
                self._states[row] = state
                changed.append(row)
        if not changed:
            return None
        changed = sorted(set(changed))
        values = np.full((len(changed), self._columns), SCRATCH, dtype=np.int64)
        for line, row in zip(values, changed, strict=True):
            if row in self._states:
                fill(line, self._states[row])
        return np.array(changed), values


def fill(line: NDArray[np.int64], state: DecodeState) -> None:
    """Write into `line`, which holds zeros, a request that is about to be fed the last token of its prefix."""
    request = state.request
    eos = sorted(state.prompt.eos_ids)[:NUM_EOS]
    line[[TOKEN, POSITION, EXCLUDE, ORIGIN, LIVE]] = state.token, state.position, state.exclude, request.origin, 1
    line[LIMIT] = len(request.prefix) + request.max_new - 2
    line[ALPHA] = np.float64(request.alpha).view(np.int64)
    line[TOP_K], line[TOP_P] = request.top_k, np.float64(request.top_p).view(np.int64)
    line[SEED] = np.uint64(request.key.seed).view(np.int64)
    line[KEY:TABLE] = request.key[1:]
    line[EOS:KEY] = eos + [-1] * (NUM_EOS - len(eos))
    line[TABLE : TABLE + len(state.pages)] = state.pages
