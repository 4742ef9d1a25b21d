"""Resolved inputs of runs of the embedded model on a few embedded problems."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from orchestrator.inputs.preflight import Inputs, resolve_inputs
from orchestrator.settings.config import RunConfig, resolve

DEMO: dict[str, Any] = {"model": "demo", "data": "demo", "mode": "run", "limit": 8}

NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)


def demo_inputs(present: int = 0, **settings: Any) -> Inputs:
    return resolve_inputs(resolve(RunConfig(**DEMO | settings), present), NOON)
