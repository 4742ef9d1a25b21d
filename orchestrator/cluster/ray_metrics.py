"""Publishes the metrics of a run through Ray, which exports them for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import orchestrator.cluster.ray_session  # noqa: F401 # isort: skip - sets what Ray reads when it is imported
from ray.util.metrics import Counter, Gauge

from orchestrator.live.metrics import METRICS


class RayMetrics:
    """A `live.metrics.Sink`: the metrics port of the driver's node exports METRICS as `ray_powersample_` + name."""

    def emit(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        if METRICS[name].kind == "gauge":
            meter(name).set(value, dict(labels))
        elif value:  # Ray's counters take no 0
            meter(name).inc(value, dict(labels))

    def close(self) -> None:
        """Does nothing: the last values stay for as long as Ray runs."""


@cache
def meter(name: str) -> Any:
    """Ray's counter or gauge for the metric of that name."""
    kind, labels, description = METRICS[name]
    return {"counter": Counter, "gauge": Gauge}[kind](f"powersample_{name}", description, labels)
