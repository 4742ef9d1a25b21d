"""What a driver and its workers say to each other: calls, events, the pool that carries them, and a pool of one.

The pool of Ray actors is in cluster.py. Knows no Ray.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

from evals.config import SamplerConfig, TaskConfig
from evals.types import Problem, Record
from orchestrator.rundir.records import RecordKey


class Work(NamedTuple):
    """One call of a worker: answer and grade a problem once."""

    problem: Problem
    sample_index: int
    sampler: SamplerConfig
    task: TaskConfig
    seed: int
    attempt: int = 1

    @property
    def key(self) -> RecordKey:
        return self.problem.problem_id, self.sample_index


class Spawned(NamedTuple):
    """A worker is being started, for the `number`-th time."""

    worker: str
    number: int


class Ready(NamedTuple):
    """A worker has loaded its model."""

    worker: str
    seconds: float


class Done(NamedTuple):
    """A problem was answered."""

    worker: str
    work: Work
    record: Record


class Raised(NamedTuple):
    """A problem raised in its worker, which lives on."""

    worker: str
    work: Work
    reason: str


class Died(NamedTuple):
    """A worker is gone, and so are the problems that it had; the pool replaces it by itself."""

    worker: str
    lost: list[Work]
    reason: str
    cause: Literal["crash", "hang", "oom", "node"] = "crash"
    blamed: list[Work] | None = None
    """Which of the lost problems may have done it; None: each of them."""

    @property
    def suspected(self) -> list[Work]:
        return self.lost if self.blamed is None else self.blamed


class Lost(NamedTuple):
    """A worker has no device to work on; the others go on without it. It may come back as `Ready`."""

    worker: str
    reason: str


class Health(NamedTuple):
    """A worker's answer to `ask_health`."""

    worker: str
    reading: dict[str, Any]


Event = Spawned | Ready | Done | Raised | Died | Lost | Health


class WorkerPool(Protocol):
    """Workers behind one interface."""

    def start(self) -> None:
        """Begin to start the workers; each reports `Ready` once it has loaded."""
        ...

    def reload(self, config: Any, slots: int) -> None:
        """Between two runs: have every worker load `config` with the model that it holds; each reports `Ready` again.

        The workers that are started from now on load the same.
        """
        ...

    def free(self, unanswered: int) -> int:
        """How many calls may be submitted now, of a run with so many problems waiting or in flight."""
        ...

    def submit(self, work: Work) -> None:
        """Give `work` to the ready worker with the most free slots."""
        ...

    def ask_health(self) -> set[str]:
        """Ask every worker that does not owe an answer; who owes one now. The answers come as `Health`."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """What happened, after at most `timeout` seconds. Raises if the pool cannot go on."""
        ...

    def close(self) -> None:
        """End all workers without waiting for their problems."""
        ...
