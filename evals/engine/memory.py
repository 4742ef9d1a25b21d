"""Memory and utilisation of one worker's process and device, read and never assumed. Knows no engine."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pynvml
import torch

from evals.types import MemoryReading, UserError

RESERVE = 0.9
"""Share of the free device memory that keys and values may take; the rest is for activations."""

STATM = Path("/proc/self/statm")


def read_memory(device: torch.device) -> MemoryReading:
    """Memory of this process, and of `device` where it is a GPU, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rss = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.exists() else peak
    if device.type != "cuda":
        return MemoryReading(rss, peak)
    free, total = torch.cuda.mem_get_info(device)
    return MemoryReading(
        rss_bytes=rss,
        peak_rss_bytes=peak,
        allocated_bytes=torch.cuda.memory_allocated(device),
        reserved_bytes=torch.cuda.memory_reserved(device),
        peak_bytes=torch.cuda.max_memory_allocated(device),
        free_bytes=free,
        total_bytes=total,
    )


def reset_peak(device: torch.device) -> None:
    """Start the device's peak anew; a process's own peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def utilisation(device: torch.device) -> float | None:
    """Share of the last sampling period in which the GPU ran a kernel, 0 to 1; None where NVML cannot tell."""
    if device.type != "cuda":
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        return int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except pynvml.NVMLError:
        return None


def check_room(device: torch.device, needed_bytes: int, slots: int) -> None:
    """Raises UserError if the device has no room for this much of keys and values for `slots` slots."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = int(RESERVE * free)
    if needed_bytes > room:
        raise UserError(
            f"{slots} slots need {needed_bytes / 2**30:.1f} GiB for keys and values, {room / 2**30:.1f} GiB are free; "
            f"set POWERSAMPLE_BATCH_SIZE to at most {slots * room // needed_bytes}, or lower task.max_new_tokens."
        )
