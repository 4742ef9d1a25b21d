"""The one progress bar: done, accuracy so far, tokens per second, memory, time left. Plain lines where no terminal is.

Knows records and health readings only. The score shown is a running impression; the report has the real one.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from tqdm import tqdm

from evals.types import Record

GRADER = "numeric"
BAR_SECONDS, LINE_SECONDS = 0.5, 10.0


class Progress:
    """Shows one run. `done` are the records that the run already had."""

    def __init__(self, name: str, total: int, done: Iterable[Record] = (), out: TextIO | None = None) -> None:
        self._out = sys.stderr if out is None else out
        self._name = name
        self._total = total
        self._num = self._correct = 0
        for record in done:
            self._count(record)
        self._initial = self._num
        self._began = self._printed = time.monotonic()
        self._workers: dict[str, tuple[Any, float, int]] = {}
        self._rates: dict[str, float] = {}
        self._bytes: dict[str, int] = {}
        self._bar = None
        if self._out.isatty():
            self._bar = tqdm(
                total=total, initial=self._initial, desc=name, unit="problem", file=self._out, dynamic_ncols=True
            )

    def add(self, record: Record) -> None:
        """One more record."""
        self._count(record)
        if self._bar is not None:
            self._bar.update()

    def health(self, worker: str, reading: Mapping[str, Any]) -> None:
        """Take tokens per second and memory from a worker's counters."""
        now, pid, tokens = time.monotonic(), reading.get("pid"), reading.get("generated_tokens", 0)
        last = self._workers.get(worker)
        if last is not None and last[0] == pid and now > last[1]:
            self._rates[worker] = (tokens - last[2]) / (now - last[1])
        self._workers[worker] = pid, now, tokens
        memory = reading.get("memory", {})
        reserved = memory.get("reserved_bytes")
        self._bytes[worker] = memory.get("rss_bytes", 0) if reserved is None else reserved

    def refresh(self) -> None:
        """Redraw the bar, or print a line, if the last one is old enough."""
        age = time.monotonic() - self._printed
        if self._bar is not None and age >= BAR_SECONDS:
            self._printed += age
            self._bar.set_postfix_str(self._figures())
        elif self._bar is None and age >= LINE_SECONDS:
            self._line()

    def close(self) -> None:
        """The last state stays on the screen."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._figures())
            self._bar.close()
        else:
            self._line()

    def _count(self, record: Record) -> None:
        self._num += 1
        self._correct += bool(record.scores.get(GRADER, {}).get("correct", False))

    def _figures(self) -> str:
        parts = []
        if self._num:
            accuracy = self._correct / self._num
            error = math.sqrt(accuracy * (1 - accuracy) / max(1, self._num - 1))
            parts.append(f"{GRADER} {100 * accuracy:.1f} ± {100 * error:.1f} %")
        if self._rates:
            parts.append(f"{sum(self._rates.values()):,.0f} tokens/s")
        if any(self._bytes.values()):
            parts.append(f"{max(self._bytes.values()) / 2**30:.1f} GiB per worker")
        return ", ".join(parts)

    def _line(self) -> None:
        self._printed = time.monotonic()
        elapsed, new = self._printed - self._began, self._num - self._initial
        parts = [f"{self._name}: {self._num} of {self._total}", self._figures()]
        if new and self._num < self._total:
            parts.append(f"{elapsed * (self._total - self._num) / new:.0f} s left")
        print(", ".join(part for part in parts if part), file=self._out, flush=True)
