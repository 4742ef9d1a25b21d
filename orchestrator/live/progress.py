"""Shows how far a run is: a progress bar with accuracy, tokens per second, time left, and a line for each worker.

Made from records and telemetry rows, whether the driver passes them on or they are read from a run directory. On a
terminal it is one bar with a table below, elsewhere plain lines. The score is PRIMARY_METRIC over the answers so far.
Tokens per second are those of the last two readings while the run goes on, and at its end the mean since this start.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import TextIO

from tqdm import tqdm

from evals.record import Record
from evals.sizing.slots import GIB, gib
from evals.statistics import mean_and_stderr
from orchestrator.analysis.accuracy import PRIMARY_METRIC, is_right
from orchestrator.rundir.reading.telemetry import worker_order
from orchestrator.rundir.telemetry_rows import TelemetryRow, WorkerState
from orchestrator.wording import percent

BAR_SECONDS, LINE_SECONDS = 0.5, 10.0
MAX_ROWS = 16  # workers in the table below the bar; more would leave no room for anything else
HEAD = f"{'worker':<12} {'slots':>9} {'tokens/s':>9} {'memory':>18} {'device':>7}"


class Progress:
    """The progress display of one run; `done` are the records that it already had, `score` is what tables call the
    score that it shows."""

    def __init__(
        self,
        name: str,
        total: int,
        done: Iterable[Record] = (),
        out: TextIO | None = None,
        score: str = PRIMARY_METRIC,
    ) -> None:
        self._out = sys.stderr if out is None else out
        self._name, self._score = name, score
        self.total = total
        self.num = 0
        """Records so far."""
        self.mean = 0.0
        """Share of right answers, averaged over problems."""
        self.on_record: Callable[[Record], object] = lambda record: None
        """Called with every record once it is counted."""
        self._tokens = 0
        self._verdicts: dict[int, list[bool]] = {}
        self._graded = False
        for record in done:
            self._count(record)
        self._num_before = self.num
        self._began = self._printed = time.monotonic()
        self._workers: dict[str, WorkerState] = {}
        self._bar = None
        self._rows: list[tqdm] = []
        if self._out.isatty():
            self._bar = tqdm(
                total=total, initial=self.num, desc=name, unit="problem", file=self._out, dynamic_ncols=True
            )

    @property
    def num_new(self) -> int:
        """Records since this display was made."""
        return self.num - self._num_before

    @property
    def seconds(self) -> float:
        """Time since this display was made."""
        return time.monotonic() - self._began

    @property
    def seconds_left(self) -> float | None:
        """Time until the run is complete at the speed so far; None before the first new record."""
        return self.seconds * (self.total - self.num) / self.num_new if self.num_new else None

    @property
    def slots(self) -> int:
        """Problems that the workers have at once, as far as they have said so."""
        return sum(state.slots or 0 for state in self._workers.values())

    def add(self, record: Record) -> None:
        """Count one more record and show it."""
        self._count(record)
        self._tokens += record.tokens.generated or 0
        if self._bar is not None:
            self._bar.update()
        self.on_record(record)

    def add_row(self, row: TelemetryRow) -> None:
        """Take in one more row of the telemetry."""
        if isinstance(row, WorkerState):
            self._workers[row.worker] = row
        elif row.event == "death":
            self._workers.pop(row.worker, None)

    def clear_workers(self) -> None:
        """Drop all workers from the table, as none is alive any more."""
        self._workers.clear()

    def refresh(self) -> None:
        """Redraw bar and table, or print a line, if the last ones are old enough."""
        age = time.monotonic() - self._printed
        if self._bar is not None and age >= BAR_SECONDS:
            self._printed += age
            self._bar.set_postfix_str(self._figures(self._speed()))
            self._draw_table()
        elif self._bar is None and age >= LINE_SECONDS:
            self._line(self._speed())

    def as_text(self) -> str:
        """The present state as lines of text: the run's, then one for each worker."""
        return "\n".join([self.state(self._speed()), *self._table()])

    def close(self) -> None:
        """End the display: the last state stays on the screen, the table is removed."""
        speed = f"{self._tokens / self.seconds:,.0f} tokens/s on average" if self._tokens and self.seconds else ""
        for row in reversed(self._rows):
            row.close()
        if self._bar is not None:
            self._bar.set_postfix_str(self._figures(speed))
            self._bar.close()
        else:
            self._line(speed)

    def _count(self, record: Record) -> None:
        self.num += 1
        self._graded = self._graded or bool(record.scores)
        verdicts = self._verdicts.setdefault(record.problem_id, [])
        before = sum(verdicts) / len(verdicts) if verdicts else self.mean
        verdicts.append(is_right(record, PRIMARY_METRIC))
        self.mean += (sum(verdicts) / len(verdicts) - before) / len(self._verdicts)

    def _speed(self) -> str:
        """Tokens per second of all workers between their last two readings, as text."""
        rates = [state.tokens_per_second for state in self._workers.values()]
        known = [rate for rate in rates if rate is not None]
        return f"{sum(known):,.0f} tokens/s" if known else ""

    def _figures(self, speed: str) -> str:
        parts = [self.score(), speed]
        if largest := max((state.process_bytes or 0 for state in self._workers.values()), default=0):
            parts.append(f"{gib(largest)} per worker")
        return ", ".join(part for part in parts if part)

    def score(self) -> str:
        """How good the answers so far are, as text; empty where nothing is graded."""
        if not self._graded:
            return ""
        mean, stderr = mean_and_stderr([sum(rights) / len(rights) for rights in self._verdicts.values()])
        spread = f" ± {percent(stderr)}" if stderr > 0 else ""  # no interval: to import scipy.stats holds up the driver
        return f"{self._score} {percent(mean)}{spread} %"

    def state(self, speed: str) -> str:
        """How far the run is, as one line of text that has the `speed`."""
        parts = [f"{self._name}: {self.num} of {self.total}", self._figures(speed)]
        if (left := self.seconds_left) is not None and self.num < self.total:
            parts.append(f"{left:.0f} s left")
        return ", ".join(part for part in parts if part)

    def _line(self, speed: str) -> None:
        self._printed = time.monotonic()
        print(self.state(speed), file=self._out, flush=True)

    def _table(self) -> list[str]:
        """A head and a line for each worker; nothing before the first reading."""
        lines = [worker_line(self._workers[worker]) for worker in sorted(self._workers, key=worker_order)]
        if len(lines) > MAX_ROWS:
            lines[MAX_ROWS - 1 :] = [f"and {len(lines) - MAX_ROWS + 1} more"]
        return [HEAD, *lines] if lines else []

    def _draw_table(self) -> None:
        """Draw the table below the bar, each line as a bar of tqdm's that shows only its text."""
        lines = self._table()
        lines += [""] * (len(self._rows) - len(lines))
        for i, line in enumerate(lines):
            if i == len(self._rows):
                self._rows.append(
                    tqdm(total=0, bar_format="{desc}", position=i + 1, leave=False, file=self._out, dynamic_ncols=True)
                )
            self._rows[i].set_description_str(line)


def worker_line(state: WorkerState) -> str:
    """A worker's line of the table: slots in use, tokens per second, memory used of the device's, utilisation."""
    size, capacity = state.device_bytes, state.memory.total_bytes
    total = f" of {capacity / GIB:.1f}" if capacity else ""
    busy, speed = state.utilisation, state.tokens_per_second
    slots = "-" if state.slots is None else f"{state.active_slots} of {state.slots}"
    return (
        f"{state.worker:<12} {slots:>9} {'-' if speed is None else f'{speed:,.0f}':>9} "
        f"{'-' if size is None else f'{size / GIB:.1f}{total} GiB':>18} {'-' if busy is None else f'{busy:.0%}':>7}"
    )
