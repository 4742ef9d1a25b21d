"""Reads the memory and the state of a device and of this process, and measures how long a CUDA stream was idle."""

from __future__ import annotations

import gc
import os
import resource
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pynvml
import torch

from evals.types import MemoryReading

STATM = Path("/proc/self/statm")


def read_memory(device: torch.device) -> MemoryReading:
    """Memory of this process, and of `device` where it is a GPU, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rss = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.exists() else peak
    peak = max(peak, rss)  # two counters of the kernel, the first of which lags behind
    if device.type != "cuda":
        return MemoryReading(rss, peak)
    free, total = torch.cuda.mem_get_info(device)
    stats = torch.cuda.memory_stats_as_nested_dict(device)  # asked once: every record has a reading
    return MemoryReading(
        rss_bytes=rss,
        peak_rss_bytes=peak,
        allocated_bytes=stats["allocated_bytes"]["all"]["current"],
        reserved_bytes=stats["reserved_bytes"]["all"]["current"],
        peak_bytes=stats["allocated_bytes"]["all"]["peak"],
        free_bytes=free,
        total_bytes=total,
    )


def bytes_in_use(device: torch.device) -> int:
    """Bytes of a GPU's memory in use by all processes."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def reset_peak(device: torch.device) -> None:
    """Reset the device's peak of allocated memory; a process's own peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class DeviceState(NamedTuple):
    """The whole GPU's state by NVML; None for what it cannot tell, and on a CPU."""

    utilisation: float | None = None
    """Share of the last sampling period in which a kernel ran, 0 to 1."""
    nvml_used_bytes: int | None = None
    power_watts: float | None = None
    temperature_celsius: int | None = None


def device_state(device: torch.device) -> DeviceState:
    """The state of `device` now."""
    state = DeviceState()
    queries = {
        "utilisation": lambda gpu: int(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) / 100,
        "nvml_used_bytes": lambda gpu: int(pynvml.nvmlDeviceGetMemoryInfo(gpu).used),
        "power_watts": lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        "temperature_celsius": lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
    }
    if device.type != "cuda":
        return state
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
    except pynvml.NVMLError:
        return state
    for name, query in queries.items():
        with suppress(pynvml.NVMLError):  # a part of a GPU has no power meter of its own
            state = state._replace(**{name: query(gpu)})
    return state


def release(device: torch.device) -> None:
    """Free memory that is no longer referenced, for other processes or for allocations of another shape."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException | None) -> str | None:
    """The first line of an error of running out of device memory; None if `error` is something else.

    The driver tells by its text only, and leaving an interrupted capture raises another error over the first.
    """
    while error is not None:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and "CU" in text and ("out of memory" in text or "ALLOC_FAILED" in text)
        ):
            return text.splitlines()[0] if text else type(error).__name__
        error = error.__context__
    return None


class IdleClock:
    """Adds up the time that the current CUDA stream was idle, from events around each piece of work; never waits, and
    counts nothing on a CPU.

    Between two pieces lies a gap on the device's own clock: a microsecond or two if the second was enqueued in time,
    else the time that the device waited for the host. A piece that comes too late also counts for the time it takes to
    enqueue, so that the sum is an upper bound.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        """Upper bound of the idle time between the pieces since `reset`."""
        self._runs = device.type == "cuda"
        self._pieces: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        """Events at the beginning and the end of each piece."""

    def reset(self) -> None:
        """Start anew at 0: the time before the next piece is not counted."""
        self.seconds = 0.0
        self._pieces.clear()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Enclose the code that enqueues a piece of work; not to be nested."""
        if not self._runs:
            yield
            return
        began = time.perf_counter()
        starved = bool(self._pieces) and self._pieces[-1][1].query()
        begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        yield
        done.record()
        self._pieces.append((begun, done))
        if starved:
            self.seconds += time.perf_counter() - began
        while len(self._pieces) > 1 and self._pieces[1][0].query():  # the device has passed this gap
            _, before = self._pieces.popleft()
            self.seconds += before.elapsed_time(self._pieces[0][0]) / 1e3
