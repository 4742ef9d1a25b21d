"""The one progress bar: done, accuracy so far, tokens per second, memory, time left. Plain lines where no terminal is.

Knows records and health readings only. The score shown is the report's headline, over the answers so far. Tokens per
second are those of the last moments while the run goes on, and the mean over this start of the run in its last state.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from tqdm import tqdm

from evals.types import Record
from orchestrator.layout import percent, with_error
from orchestrator.scores import HEADLINE, accuracy, right

BAR_SECONDS, LINE_SECONDS = 0.5, 10.0


class Progress:
    """Shows one run. `done` are the records that the run already had."""

    def __init__(self, name: str, total: int, done: Iterable[Record] = (), out: TextIO | None = None) -> None:
        self._out = sys.stderr if out is None else out
        self._name = name
        self._total = total
        self._num = 0
        self._tokens = 0
        self._verdicts: dict[int, list[bool]] = {}
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
        self._tokens += record.tokens.get("generated", 0)
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
            self._bar.set_postfix_str(self._figures(self._speed()))
        elif self._bar is None and age >= LINE_SECONDS:
            self._line(self._speed())

    def close(self) -> None:
        """The last state stays on the screen."""
        elapsed = time.monotonic() - self._began
        speed = f"{self._tokens / elapsed:,.0f} tokens/s on average" if self._tokens and elapsed else ""
        if self._bar is not None:
            self._bar.set_postfix_str(self._figures(speed))
            self._bar.close()
        else:
            self._line(speed)

    def _count(self, record: Record) -> None:
        self._num += 1
        self._verdicts.setdefault(record.problem_id, []).append(right(record, HEADLINE))

    def _speed(self) -> str:
        """Of the window between the last two readings of each worker."""
        return f"{sum(self._rates.values()):,.0f} tokens/s" if self._rates else ""

    def _figures(self, speed: str) -> str:
        parts = [self._score(), speed]
        if any(self._bytes.values()):
            parts.append(f"{max(self._bytes.values()) / 2**30:.1f} GiB per worker")
        return ", ".join(part for part in parts if part)

    def _score(self) -> str:
        if not self._num:
            return ""
        means = {problem_id: sum(rights) / len(rights) for problem_id, rights in self._verdicts.items()}
        score = accuracy(means, max(map(len, self._verdicts.values())))
        return f"{HEADLINE} {with_error(score) if score['n'] > 1 else percent(score['mean'])} %"

    def _line(self, speed: str) -> None:
        self._printed = time.monotonic()
        elapsed, new = self._printed - self._began, self._num - self._initial
        parts = [f"{self._name}: {self._num} of {self._total}", self._figures(speed)]
        if new and self._num < self._total:
            parts.append(f"{elapsed * (self._total - self._num) / new:.0f} s left")
        print(", ".join(part for part in parts if part), file=self._out, flush=True)
