"""The interface between driver and workers: `Work` goes in, messages come out of a `WorkerPool`.

The pools are workers/inline_pool.py (one worker in this process) and cluster/actors.py (Ray actors).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from evals.config import TaskConfig
from evals.record import Record, RecordKey
from evals.samplers.registry import AnySampler
from evals.sizing.slots import SlotChange
from evals.types import Problem
from orchestrator.rundir.telemetry_rows import Event, WorkerState


class Work(NamedTuple):
    """One call of a worker: answer a problem once and grade the answer."""

    problem: Problem
    sample_index: int
    sampler: AnySampler
    task: TaskConfig
    seed: int
    attempt: int = 1
    serial: int = 0
    """Tells it from others of the same key that are under way."""
    log_probs: bool = False
    """Whether its record has the log p of each token."""
    call: int = 0
    """Number of the call by which a pool of processes has handed it on; no other call of that pool has it."""

    @property
    def key(self) -> RecordKey:
        return self.problem.problem_id, self.sample_index

    @property
    def identity(self) -> tuple[int, int, int]:
        """What its attempts have in common, and no other work under way has."""
        return *self.key, self.serial


class Done(NamedTuple):
    """A worker has answered a problem."""

    worker: str
    work: Work
    record: Record


class Raised(NamedTuple):
    """A problem raised an exception in its worker, which lives on."""

    worker: str
    work: Work
    reason: str


class Died(NamedTuple):
    """A worker's process is gone; the pool starts a replacement by itself."""

    worker: str
    unanswered: list[Work]
    """The problems that it had."""
    reason: str
    cause: Literal["crash", "hang", "oom", "node"] = "crash"
    blamed: list[Work] | None = None
    """Which of these problems may have caused it; None: each of them."""

    @property
    def suspected(self) -> list[Work]:
        """The problems that may have caused it."""
        return self.unanswered if self.blamed is None else self.blamed

    def rows(self) -> list[Event]:
        """The death as rows of the telemetry; a hang and a lack of memory have a row of their own."""
        worker, reason, cause = self.worker, self.reason, self.cause
        first = [Event(event=cause, worker=worker, reason=reason)] if cause in ("hang", "oom") else []
        return [*first, Event(event="death", worker=worker, reason=reason, cause=cause, lost=len(self.unanswered))]


class Health(NamedTuple):
    """A worker's answer to `request_health`, with what is told only once."""

    state: WorkerState
    notes: str = ""
    """For a person."""
    slot_changes: Sequence[SlotChange] = ()

    @property
    def worker(self) -> str:
        return self.state.worker


Message = Event | Done | Raised | Died | Health
"""What a pool says. An `Event` is one of a worker, as the telemetry has it: `spawn`, `ready` (it has loaded), or `lost`
(it has no device to work on, and the others go on without it; it may become ready again)."""


class WorkerPool(Protocol):
    """A set of workers that the driver gives work to, wherever they run."""

    def start(self) -> None:
        """Start the workers without waiting for them; each says `ready` once it has loaded."""
        ...

    def reload(self, config: Any, slots: int) -> None:
        """Between two runs: have every worker, present or future, load `config`; each says `ready` again.

        The model has to be the same, and present workers keep it.
        """
        ...

    def free_slots(self, unanswered: int) -> int:
        """How many calls may be submitted now; `unanswered` is the run's number of problems waiting or in flight."""
        ...

    def submit(self, work: Work) -> None:
        """Give `work` to the ready worker with the most free slots."""
        ...

    def cancel(self, work: Work) -> None:
        """Give up the very `work` that was submitted: its slot is free, and nothing is said of it any more."""
        ...

    def request_health(self) -> set[str]:
        """Ask all workers for their health, but those that were asked already; returns the names of all who owe it.

        The answers come as `Health`.
        """
        ...

    def wait(self, timeout: float) -> list[Message]:
        """The messages since the last call, waiting at most `timeout` seconds. Raises if the pool cannot go on."""
        ...

    def close(self) -> None:
        """End all workers without waiting for their problems."""
        ...
