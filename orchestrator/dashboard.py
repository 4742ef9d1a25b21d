"""What Ray shows of a run: the address of its dashboard, and the metrics that its nodes export.

Imports Ray only when a crew of cluster.py is up: that file sets what Ray reads when it is imported.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.metrics import METRICS


class RayMetrics:
    """A sink of `metrics.METRICS`: the metrics port of the driver's node exports them as `ray_` + name."""

    def add(self, name: str, amount: float, labels: Mapping[str, str]) -> None:
        if amount:
            meter(name).inc(amount, dict(labels))

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        meter(name).set(value, dict(labels))

    def close(self) -> None:
        """The last values stay for as long as Ray does."""


@cache
def meter(name: str) -> Any:
    """Ray's counter or gauge of that name."""
    from ray.util.metrics import Counter, Gauge

    kind, labels, description = METRICS[name]
    return {"counter": Counter, "gauge": Gauge}[kind](name, description, labels)


def invitation(place: str) -> str:
    """Where the dashboard is, how to come in and how to get there from elsewhere."""
    beside = Path(sys.executable).with_name("ray")
    command = str(beside) if beside.exists() else shutil.which("ray") or f"{sys.executable} -m ray.scripts.scripts"
    port = place.rpartition(":")[2]
    return (
        f"Ray's dashboard: http://{place} (it asks for what `{command} get-auth-token` prints; from another machine "
        f"first `ssh -L {port}:{place} THIS_HOST`, then http://127.0.0.1:{port})"
    )
