"""What a driver and its workers say to each other: calls, events, the crew that carries them, and a crew of one.

The crew of Ray actors is in cluster.py. Knows no Ray.
"""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Literal, NamedTuple, Protocol

from evals.config import SamplerConfig, TaskConfig
from evals.types import Problem, Record, WorkersLost
from orchestrator.store import Key


class Work(NamedTuple):
    """One call of a worker: answer and grade a problem once."""

    problem: Problem
    sample_index: int
    sampler: SamplerConfig
    task: TaskConfig
    seed: int
    attempt: int = 1

    @property
    def key(self) -> Key:
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
    """A worker is gone, and so are the problems that it had; the crew replaces it by itself."""

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


class Crew(Protocol):
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
        """What happened, after at most `timeout` seconds. Raises if the crew cannot go on."""
        ...

    def close(self) -> None:
        """End all workers without waiting for their problems."""
        ...


class InlineCrew:
    """One `orchestrator.worker.Worker` in this process; it survives no crash. What `load` raises comes from `start`."""

    def __init__(self, worker: Any, config: Any, slots: int) -> None:
        self._worker, self._config, self._slots, self._name = worker, config, slots, "inline"
        self._calls: dict[Future[Record], Work] = {}
        self._events: list[Event] = []
        self._loaded = False

    def reload(self, config: Any, slots: int) -> None:
        self._config, self._slots = config, slots
        self.start()

    def start(self) -> None:
        began = time.monotonic()
        self._worker.load(self._config)
        self._loaded = True
        self._events.append(Ready(self._name, time.monotonic() - began))

    def free(self, unanswered: int) -> int:
        return self._slots - len(self._calls)

    def submit(self, work: Work) -> None:
        try:
            self._calls[self._worker.begin(work)] = work
        except Exception as error:  # noqa: BLE001 - reported as this problem's, as it would come from an actor
            self._events.append(raised(self._name, work, error))

    def ask_health(self) -> set[str]:
        reading = self._worker.health()
        self._slots = reading.get("slots", self._slots)
        self._events.append(Health(self._name, reading))
        return {self._name}

    def wait(self, timeout: float) -> list[Event]:
        """Raises WorkersLost if the worker can do nothing any more: here nobody replaces it.

        Answers from before the failure come out first; of what raises no problem is to blame, so it stays owed.
        """
        events, self._events = self._events, []
        for call in wait(self._calls, 0 if events else timeout, return_when=FIRST_COMPLETED).done:
            work, error = self._calls.pop(call), call.exception()
            events.append(Done(self._name, work, call.result()) if error is None else raised(self._name, work, error))
        if (failure := self._worker.failure()) is None:
            return events
        answered: list[Event] = [event for event in events if isinstance(event, Done)]
        if answered:
            return answered
        raise WorkersLost(f"the engine has failed: {failure}") from failure

    def close(self) -> None:
        if self._loaded:
            self._worker.close()


def raised(worker: str, work: Work, error: BaseException) -> Raised:
    """The event of a problem that raised `error`."""
    return Raised(worker, work, f"{type(error).__name__}: {error}")
