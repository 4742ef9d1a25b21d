"""How long a CUDA stream had nothing to do, from events around each piece of work. Knows no work and waits for nothing.

Between two pieces lies a gap on the device's own clock: a microsecond or two if the second was enqueued in time, else
the time that the device waited for the host. A piece that comes too late also counts for the time it takes to enqueue,
so that the sum is an upper bound.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Piece(NamedTuple):
    """Work that is enqueued in one go."""

    begun: torch.cuda.Event
    done: torch.cuda.Event


class IdleClock:
    """Adds up the gaps of the current stream; on a CPU it stands still."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        """Time without work, at most, between the pieces since `reset`."""
        self._runs = device.type == "cuda"
        self._pieces: deque[Piece] = deque()

    def reset(self) -> None:
        """Start anew: what lies before the next piece is no gap."""
        self.seconds = 0.0
        self._pieces.clear()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Enclose what enqueues a piece of work; not within one another."""
        if not self._runs:
            yield
            return
        began = time.perf_counter()
        starved = bool(self._pieces) and self._pieces[-1].done.query()
        piece = Piece(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        piece.begun.record()
        yield
        piece.done.record()
        self._pieces.append(piece)
        if starved:
            self.seconds += time.perf_counter() - began
        self._settle()

    def _settle(self) -> None:
        """Add the gaps that the device has passed."""
        while len(self._pieces) > 1 and self._pieces[1].begun.query():
            before = self._pieces.popleft()
            self.seconds += before.done.elapsed_time(self._pieces[0].begun) / 1e3
