"""Waits until a GPU's memory is free again: a killed process's memory is given back only seconds after its end.

Reads NVML, so that the waiting process takes nothing of the device itself. Knows no worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pynvml

from orchestrator.hardware import gpus

SHARE = 0.95
"""Of what was free before the first load: as much is enough, since others may have come."""
RELEASE_SECONDS = 60.0
POLL_SECONDS = 0.25


def free_bytes() -> int | None:
    """Free memory of the one GPU that this process sees; None where there is none, or NVML does not tell."""
    present = gpus()
    if len(present) != 1:
        return None
    try:
        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(present[0].uuid)).free)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # a MIG instance, say, of which the driver does not tell everybody
        return None


def wait_for_room(wanted: int | None, free: Callable[[], int | None] = free_bytes) -> int | None:
    """Bytes free now, once nearly `wanted` are, or after RELEASE_SECONDS: whether that is enough, loading will tell."""
    until = time.monotonic() + RELEASE_SECONDS
    while (now := free()) is not None and wanted is not None and now < SHARE * wanted:
        if time.monotonic() >= until:
            break
        time.sleep(POLL_SECONDS)
    return now
