"""The metrics that a run publishes while it goes, computed from its records and telemetry rows.

A *sink* takes the values. Ray's sink (cluster/ray_metrics.py) exports them at the metrics port of the driver's node as
`ray_powersample_` + name, for Prometheus; `launch/grafana.json` draws them. wandb and trackio get the same without the
prefix. No text of a problem or an answer is ever a label.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from evals.record import Record
from evals.samplers.trace import MoveFigures
from orchestrator.live.progress import Progress
from orchestrator.rundir.telemetry_rows import TelemetryRow, WorkerState

TRACK_SECONDS = 10.0  # between two rows of a tracker
FAILURES = ("death", "hang", "oom", "lost", "requeue", "retry", "failed")


class Metric(NamedTuple):
    """One metric: a counter only grows while the driver lives, a gauge is the present value."""

    kind: str
    labels: tuple[str, ...]
    description: str


METRICS = {
    name: Metric("counter" if name.endswith("_total") else "gauge", ("run", *labels.split()), words)
    for name, labels, words in (
        ("problems_total", "status", "Answers recorded, by status (ok, failed)"),
        ("tokens_total", "", "Tokens generated for the recorded answers"),
        ("answer_seconds_total", "", "Seconds of all recorded answers, added up"),
        ("moves_total", "", "Metropolis-Hastings moves of the recorded answers"),
        ("failures_total", "event", f"What went wrong, by event ({', '.join(FAILURES)})"),
        ("accuracy", "", "Share of the recorded answers that are right, by the score that reports show first"),
        ("owed", "", "Answers still to be recorded"),
        ("slots", "worker", "Problems that a worker may have at once"),
        ("active_slots", "worker", "Problems that a worker has now"),
        ("tokens_per_second", "worker", "Tokens per second between two samples"),
        ("memory_bytes", "worker", "Memory reserved by a worker's process on its GPU, or held by it on the host"),
        ("device_memory_bytes", "worker", "Memory in use on the whole GPU (NVML)"),
        ("utilisation", "worker", "Share of time in which the GPU ran a kernel, 0 to 1"),
    )
}
"""Every metric by its name."""


class Sink(Protocol):
    """Receives values of METRICS: of a counter the increase, of a gauge the value; `labels` has all of its labels."""

    def emit(self, name: str, value: float, labels: Mapping[str, str]) -> None: ...
    def close(self) -> None: ...


class Metrics:
    """Computes the metrics of one run and passes them to the sinks."""

    def __init__(self, run: str, progress: Progress, sinks: Sequence[Sink]) -> None:
        self._run, self._progress, self._sinks = run, progress, sinks

    def record(self, record: Record) -> None:
        """Take in one more record, which `progress` has counted already."""
        self._tell("problems_total", 1, status=record.status)
        self._tell("tokens_total", record.tokens.generated or 0)
        self._tell("answer_seconds_total", record.timings.wall_seconds or 0.0)
        self._tell("moves_total", (isinstance(record.chain, MoveFigures) and record.chain.moves) or 0)
        self._state()

    def add_row(self, row: TelemetryRow) -> None:
        """Take in one more row of the telemetry."""
        if isinstance(row, WorkerState):
            readings = {
                "slots": row.slots,
                "active_slots": row.active_slots,
                "tokens_per_second": row.tokens_per_second,
                "utilisation": row.utilisation,
                "memory_bytes": row.process_bytes,
                "device_memory_bytes": row.nvml_used_bytes,
            }
            for name, value in readings.items():
                if value is not None:
                    self._tell(name, value, worker=row.worker)
            self._state()
        elif row.event in FAILURES:
            self._tell("failures_total", 1, event=row.event)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def _state(self) -> None:
        """Set accuracy and owed answers; with every sample, too: Ray exports a gauge only if it was set anew."""
        self._tell("accuracy", self._progress.mean)
        self._tell("owed", self._progress.total - self._progress.num)

    def _tell(self, name: str, value: float, **labels: str) -> None:
        for sink in self._sinks:
            sink.emit(name, value, {"run": self._run, **labels})


class Tracker:
    """Sink that logs a row to wandb or trackio every TRACK_SECONDS; labels other than the run are part of the names."""

    def __init__(self, module: str, run: str, config: Mapping[str, Any]) -> None:
        self._run = import_module(module).init(project="powersample", name=run, config=dict(config))
        self._values: dict[str, float] = {}
        self._logged = time.monotonic()

    def emit(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        column = "/".join([name, *(label for key, label in labels.items() if key != "run")])  # tokens_per_second/gpu0
        before = self._values.get(column, 0.0) if METRICS[name].kind == "counter" else 0.0
        self._values[column] = before + value
        if time.monotonic() - self._logged >= TRACK_SECONDS:
            self._log()

    def close(self) -> None:
        self._log()
        self._run.finish()

    def _log(self) -> None:
        self._logged = time.monotonic()
        self._run.log(dict(self._values))
