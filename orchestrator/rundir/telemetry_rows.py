"""The rows of telemetry.jsonl, which say what happened while a run ran: a worker's state at one moment, or an event.

The same types write and read them. A line has the fields that were given when its row was made, and no others, so that
a field without a value can be told from one that nobody asked for.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Literal, Self

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, model_validator

from evals.types import TOLERANT, Amount, MemoryReading

Nonnegative = Annotated[float, Ge(0)]
EventName = Literal[
    "start", "phase", "tail", "torn_tail", "stop", "spawn", "ready", "slots", "hang", "oom", "death", "lost",
    "requeue", "retry", "failed",
]  # fmt: skip
"""What can happen:

- `start`: a process began to work on this run;
- `phase`: from now on this process does `name`: `setup` (settings, model and data found, checked), `ray` (Ray and the
  actors start), `load` (weights, self-check), `waiting` (other runs have the workers), `sampling`, `end`;
- `tail`: `seconds` from the first slot without work to the end;
- `torn_tail`: an unfinished line of so many `bytes` that a crash had left in the log was cut; `stop`: by a `signal`;
- of a `worker`: `spawn` (for the `number`-th time), `ready` (with `seconds` of the load), `death` (by its `cause`, with
  so many problems `lost`), `hang`, `oom`, `slots` (it takes another number), `lost` (it has no device to work on);
- `requeue` (its worker died), `retry` (it raised), `failed`: a problem's.

A run that was killed has no phase `end`: a phase lasts until the next phase of the same start or until its last row.
"""


class Row(BaseModel):
    """A row of either kind."""

    model_config = ConfigDict(**TOLERANT, frozen=True)

    kind: str
    time: float = Field(default_factory=time.time)
    """Unix seconds, by the driver's clock; now unless given."""

    @model_validator(mode="after")
    def _says_what_it_is_about(self, info: ValidationInfo) -> Self:
        """Raises ValueError for a line without its time, and for a row without the fields of its event."""
        needed = ["time"] if info.mode == "json" else []
        needed += {"phase": ["name"], "tail": ["seconds"]}.get(getattr(self, "event", ""), [])
        if missing := [name for name in needed if name not in self.model_fields_set]:
            raise ValueError(f"{missing[0]} is missing")
        return self

    def line(self) -> bytes:
        """The row as a line of the file."""
        fields = {"kind": self.kind, "time": self.time, **self.model_dump(exclude_unset=True)}
        return (json.dumps(fields) + "\n").encode()


class WorkerState(Row):
    """What a worker says of itself at one moment; None is what it cannot tell."""

    kind: Literal["sample"] = "sample"
    worker: str
    """Its name."""
    rank: int | None = None
    pid: int | None = None
    host: str = ""
    device: str = ""
    steps: Amount | None = None
    active_slots: Amount | None = None
    slots: Amount | None = None
    generated_tokens: Amount | None = None
    prefilled_tokens: Amount | None = None
    preempted_requests: Amount | None = None
    cancelled_chains: Amount | None = None
    kv_pages_used: Amount | None = None
    kv_pages: Amount | None = None
    step_seconds: Nonnegative | None = None
    """From `steps` to here the fields of `EngineCounters`."""
    memory: MemoryReading = MemoryReading()
    idle_seconds: Nonnegative | None = None
    """How long the device waited for the host, where the engine counts it."""
    utilisation: Nonnegative | None = None
    """0 to 1; with the next three of the whole device, as NVML says it."""
    nvml_used_bytes: Amount | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    tokens_per_second: float | None = None
    """Since the worker's last row; negative if it made a new engine since."""
    waiting_fraction: float | None = None
    """Share of the time since the worker's last row in which the device waited for the host."""

    @property
    def process_bytes(self) -> int | None:
        """Bytes of memory that the worker's process holds: of its device if it has one, else of the host."""
        return self.memory.rss_bytes if self.memory.reserved_bytes is None else self.memory.reserved_bytes

    @property
    def device_bytes(self) -> int | None:
        """Bytes of memory in use on the worker's device, by all processes; without a device as `process_bytes`."""
        if self.memory.total_bytes is None or self.memory.free_bytes is None:
            return self.process_bytes
        return self.memory.total_bytes - self.memory.free_bytes


class Event(Row):
    """Something that happened, see `EventName`."""

    kind: Literal["event"] = "event"
    event: EventName
    worker: str = ""
    """The worker that it happened to; empty where it concerns the run."""
    reason: str = ""
    problem_id: int | None = None
    sample_index: int | None = None
    name: str = ""
    """The phase that begins."""
    seconds: Nonnegative = 0.0
    signal: str = ""
    bytes: Amount = 0
    number: Amount = 0
    cause: str = ""
    lost: Amount = 0
    old: Amount = 0
    new: Amount = 0
    """Slots before and after a change of `slots`."""
    pid: int | None = None
    """From here on of a `start`: the driver's process, its host, what the run has and lacks, and what it runs."""
    host: str = ""
    done: Amount = 0
    owed: Amount = 0
    num_workers: Amount = 0
    slots: Amount = 0
    inline: bool = False
    git_commit: str | None = None
    git_dirty: bool | None = None
    versions: dict[str, str] = {}


TelemetryRow = WorkerState | Event
ROW: TypeAdapter[TelemetryRow] = TypeAdapter(Annotated[WorkerState | Event, Field(discriminator="kind")])
"""Reads a row: `ROW.validate_json(line)` raises ValueError for a line that is none."""
