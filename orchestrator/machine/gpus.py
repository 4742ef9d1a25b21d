"""The GPUs of this machine, asked through NVML: which are visible, their free memory, whether torch can use them.

Imports no torch and must not initialise CUDA: a context would hold memory on a GPU that belongs to a worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pynvml

from evals.types import UserError

NO_DRIVER = (
    pynvml.nvmlExceptionClass(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND),
    pynvml.nvmlExceptionClass(pynvml.NVML_ERROR_DRIVER_NOT_LOADED),
)
PROBE = "import json, torch; print(json.dumps([torch.cuda.is_available(), torch.__version__, torch.version.cuda]))"
BFLOAT16 = 8, 0  # CUDA's capability from which a GPU has it
ROOM = 0.95
"""Share of the wanted bytes that is enough: other processes may have taken some since."""
RELEASE_SECONDS, POLL_SECONDS = 60.0, 0.25


class Gpu(NamedTuple):
    """One GPU as NVML sees it."""

    index: int
    uuid: str
    name: str
    memory_bytes: int
    capability: tuple[int, int] = BFLOAT16
    """CUDA compute capability; of a MIG instance at least the default, since older GPUs cannot be divided."""


def visible_gpus() -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to this process; empty without an NVIDIA driver.

    Raises UserError if there is a driver and it does not answer.
    """
    try:
        with nvml():
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            present = [
                Gpu(
                    index,
                    str(pynvml.nvmlDeviceGetUUID(handle)),
                    str(pynvml.nvmlDeviceGetName(handle)),
                    int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                    pynvml.nvmlDeviceGetCudaComputeCapability(handle),
                )
                for index, handle in enumerate(handles)
            ]
    except NO_DRIVER:
        return []
    except pynvml.NVMLError as error:
        raise UserError(
            f"This machine has an NVIDIA driver that does not answer ({error}); repair it, or hide the GPUs by "
            "CUDA_VISIBLE_DEVICES= and ask for 0 of them.",
            ("num_gpus",),
        ) from error
    return visible(present, os.environ.get("CUDA_VISIBLE_DEVICES"))


@contextmanager
def nvml() -> Iterator[None]:
    """Keeps NVML open inside the `with` block. Raises pynvml.NVMLError."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def visible(present: Sequence[Gpu], devices: str | None) -> list[Gpu]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES names; like CUDA, it ends at the first that does not exist."""
    if devices is None:
        return list(present)
    seen = []
    for device in (part.strip() for part in devices.split(",")):
        if device.startswith("MIG-"):
            seen.append(Gpu(-1, device, "MIG instance", 0))
            continue
        match = [gpu for gpu in present if device == str(gpu.index) or (device and gpu.uuid.startswith(device))]
        if not match:
            break
        seen.append(match[0])
    return seen


def check_torch_sees_gpus(present: Sequence[Gpu]) -> None:
    """Raises UserError if torch, asked in a process of its own, cannot use the GPUs that are there."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"torch cannot be imported by {sys.executable} ({reason}); make the environment again.")
    available, torch, cuda = json.loads(probe.stdout.strip().splitlines()[-1])
    if not available:
        build = f"is built for CUDA {cuda}" if cuda else "is built without CUDA"
        count = f"{len(present)} GPU{'s' if len(present) > 1 else ''}"
        raise UserError(
            f"This machine has {count} ({present[0].name}, driver {driver_version()}) but torch {torch} "
            f"cannot use them (it {build}); install a torch that fits the driver, or ask for 0 of them.",
            ("num_gpus",),
        )


def driver_version() -> str:
    """Version of the NVIDIA driver, `none` without one."""
    try:
        with nvml():
            return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return "none"


def free_bytes() -> int | None:
    """Free memory of the one GPU that this process sees; None if it sees none or several, or NVML fails."""
    present = visible_gpus()
    if len(present) != 1:
        return None
    try:
        with nvml():
            return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(present[0].uuid)).free)
    except pynvml.NVMLError:  # e.g. a MIG instance, whose memory not every process may ask for
        return None


def wait_for_free_memory(wanted: int | None, free: Callable[[], int | None] = free_bytes) -> int | None:
    """Wait until nearly `wanted` bytes of the GPU are free, at most RELEASE_SECONDS; returns the bytes then free.

    A killed process's memory is given back only seconds after its end. Too little is no error here but in the load.
    """
    until = time.monotonic() + RELEASE_SECONDS
    while (now := free()) is not None and wanted is not None and now < ROOM * wanted and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return now
