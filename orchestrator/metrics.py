"""What a run publishes while it goes: the table of its metrics, filled from records and telemetry rows.

Knows neither Ray nor a tracker: a *sink* takes the values. With Ray's sink (join.py) they are at the
metrics port of the driver's node as `ray_` + name, for Prometheus; `launch/grafana.json` draws them. wandb and trackio
get the same without the prefix. No text of a problem or an answer is ever a label.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

from evals.types import Record, UserError
from orchestrator.config import RunConfig
from orchestrator.progress import Progress
from orchestrator.telemetry import Telemetry

TRACK_SECONDS = 10.0  # between two rows of a tracker


class Metric(NamedTuple):
    """One metric: a counter only grows while a driver lives, a gauge is what is now."""

    kind: str
    labels: tuple[str, ...]
    description: str


METRICS = {
    "powersample_problems_total": Metric("counter", ("run", "status"), "Answers recorded, by status (ok, failed)"),
    "powersample_tokens_total": Metric("counter", ("run",), "Tokens generated for the recorded answers"),
    "powersample_answer_seconds_total": Metric("counter", ("run",), "Seconds of all recorded answers, added up"),
    "powersample_moves_total": Metric("counter", ("run",), "Metropolis-Hastings moves of the recorded answers"),
    "powersample_failures_total": Metric(
        "counter", ("run", "event"), "What went wrong, by event (death, hang, oom, lost, requeue, retry, failed)"
    ),
    "powersample_accuracy": Metric("gauge", ("run",), "Share of the recorded answers that are right (numeric score)"),
    "powersample_owed": Metric("gauge", ("run",), "Answers still to be recorded"),
    "powersample_slots": Metric("gauge", ("run", "worker"), "Problems that a worker may have at once"),
    "powersample_active_slots": Metric("gauge", ("run", "worker"), "Problems that a worker has now"),
    "powersample_tokens_per_second": Metric("gauge", ("run", "worker"), "Tokens per second between two samples"),
    "powersample_memory_bytes": Metric(
        "gauge", ("run", "worker"), "Memory reserved by a worker's process on its GPU, or held by it on the host"
    ),
    "powersample_device_memory_bytes": Metric("gauge", ("run", "worker"), "Memory in use on the whole GPU (NVML)"),
    "powersample_utilisation": Metric(
        "gauge", ("run", "worker"), "Share of time in which the GPU ran a kernel, 0 to 1"
    ),
}
"""Every metric by its name."""
FAILURES = ("death", "hang", "oom", "lost", "requeue", "retry", "failed")
READINGS = {
    "slots": "powersample_slots",
    "active_slots": "powersample_active_slots",
    "tokens_per_second": "powersample_tokens_per_second",
    "nvml_used_bytes": "powersample_device_memory_bytes",
    "utilisation": "powersample_utilisation",
}
"""Fields of a sample that are gauges as they are."""


class Sink(Protocol):
    """Takes values of METRICS; `labels` has all of a metric's labels."""

    def add(self, name: str, amount: float, labels: Mapping[str, str]) -> None: ...
    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None: ...
    def close(self) -> None: ...


class Metrics:
    """Fills the metrics of one run."""

    def __init__(self, run: str, total: int, progress: Progress, sinks: Sequence[Sink]) -> None:
        self._run, self._total, self._progress, self._sinks = run, total, progress, sinks

    def record(self, record: Record) -> None:
        """One more record, which `progress` has counted."""
        self._add("powersample_problems_total", 1, status=record.status)
        self._add("powersample_tokens_total", record.tokens.get("generated", 0))
        self._add("powersample_answer_seconds_total", record.timings.get("wall_seconds", 0.0))
        self._add("powersample_moves_total", record.chain.get("moves") or 0)
        self._state()

    def row(self, row: Mapping[str, Any]) -> None:
        """One more row of the telemetry."""
        if row["kind"] == "sample":
            for field, name in READINGS.items():
                if row.get(field) is not None:
                    self._set(name, row[field], worker=row["worker"])
            memory = row.get("memory", {})
            held = memory.get("reserved_bytes") or memory.get("rss_bytes")
            if held is not None:
                self._set("powersample_memory_bytes", held, worker=row["worker"])
            self._state()
        elif row["event"] in FAILURES:
            self._add("powersample_failures_total", 1, event=row["event"])

    def _state(self) -> None:
        """Set with every sample, too: Ray exports a gauge only if it was set since the last export."""
        self._set("powersample_accuracy", self._progress.mean)
        self._set("powersample_owed", self._total - self._progress.num)

    def _add(self, name: str, amount: float, **labels: str) -> None:
        for sink in self._sinks:
            sink.add(name, amount, {"run": self._run, **labels})

    def _set(self, name: str, value: float, **labels: str) -> None:
        for sink in self._sinks:
            sink.set(name, value, {"run": self._run, **labels})


class Tracker:
    """A run of wandb or trackio: a row every TRACK_SECONDS, labels other than the run's are part of the names."""

    def __init__(self, module: str, run: str, config: Mapping[str, Any]) -> None:
        self._run = import_module(module).init(project="powersample", name=run, config=dict(config))
        self._values: dict[str, float] = {}
        self._logged = time.monotonic()

    def add(self, name: str, amount: float, labels: Mapping[str, str]) -> None:
        self.set(name, self._values.get(path(name, labels), 0.0) + amount, labels)

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        self._values[path(name, labels)] = value
        if time.monotonic() - self._logged >= TRACK_SECONDS:
            self._log()

    def close(self) -> None:
        self._log()
        self._run.finish()

    def _log(self) -> None:
        self._logged = time.monotonic()
        self._run.log(dict(self._values))


def path(name: str, labels: Mapping[str, str]) -> str:
    """`tokens_per_second/gpu0`."""
    return "/".join([name.removeprefix("powersample_"), *(value for key, value in labels.items() if key != "run")])


def check_tracker(module: str | None) -> None:
    """Raises UserError if the tracker is not installed."""
    if module is not None and find_spec(module) is None:
        raise UserError(f"--track {module} needs the package {module}, which is not installed; pip install {module}.")


def sinks(config: RunConfig) -> list[Sink]:
    """Ray's metrics where Ray is up, and the tracker that was asked for."""
    found: list[Sink] = []
    if not config.inline:
        from orchestrator.join import RayMetrics

        found.append(RayMetrics())
    if config.track is not None:
        found.append(Tracker(config.track, config.name, config.model_dump(mode="json")))
    return found


@contextmanager
def published(config: RunConfig, total: int, telemetry: Telemetry, progress: Progress) -> Iterator[None]:
    """While a run is driven, its telemetry goes to the progress too, and both into the metrics."""
    outlets = sinks(config)
    metrics = Metrics(config.name, total, progress, outlets)
    telemetry.listeners += [progress.row, metrics.row]
    progress.listeners.append(metrics.record)
    try:
        yield
    finally:
        telemetry.listeners.clear()
        for sink in outlets:
            sink.close()
