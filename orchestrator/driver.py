"""The driver loop: hand out owed problems, write down what comes back, decide what to do about failures. Knows no Ray.

Pull with refill: a worker with a free slot gets the next owed problem; no slot waits for a batch. Only the loop
writes to the store. A *crew* (Ray actors, or one worker in this process) does the work.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple, Protocol

from evals.config import SamplerConfig, TaskConfig
from evals.types import Problem, Record
from orchestrator.progress import Progress
from orchestrator.store import Key, RunStore
from orchestrator.telemetry import Telemetry

MAX_ATTEMPTS = 3  # times that a problem may raise before it is recorded as failed
MAX_STRIKES = 3  # deaths of a worker with this problem in flight before the problem has to run alone
MAX_BARREN_DEATHS = 8  # deaths in a row without one answer: then the machine is at fault, and no problem
HEALTH_SECONDS = 2.0
WAIT_SECONDS = 0.2  # how long a signal may go unnoticed


class WorkersLost(Exception):  # noqa: N818 - it says what is the matter
    """The workers cannot be kept alive; what is recorded is safe, and another start goes on."""


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


class Health(NamedTuple):
    """A worker's answer to `ask_health`."""

    worker: str
    reading: dict[str, Any]


Event = Ready | Done | Raised | Died | Health


class Crew(Protocol):
    """Workers behind one interface."""

    def start(self) -> None:
        """Begin to start the workers; each reports `Ready` once it has loaded."""
        ...

    def free(self, unanswered: int) -> int:
        """How many calls may be submitted now, of a run with so many problems waiting or in flight."""
        ...

    def submit(self, work: Work) -> None:
        """Give `work` to the ready worker with the most free slots."""
        ...

    def ask_health(self) -> None:
        """Ask every worker that does not owe an answer; the answers come as `Health`."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """What happened, after at most `timeout` seconds. Raises if the crew cannot go on."""
        ...

    def close(self) -> None:
        """End all workers without waiting for their problems."""
        ...


@dataclass
class Drive:
    """One run being driven: who is owed, in flight and suspected."""

    crew: Crew
    store: RunStore
    telemetry: Telemetry
    progress: Progress
    queue: deque[Work]
    in_flight: dict[Key, Work] = field(default_factory=dict)
    errors: Counter[Key] = field(default_factory=Counter)
    strikes: Counter[Key] = field(default_factory=Counter)
    suspects: deque[Work] = field(default_factory=deque)
    """Problems with too many strikes: they run alone, last, so that an innocent one clears itself."""
    barren_deaths: int = 0

    def fill(self) -> None:
        """Hand out work while there are free slots; a suspect only when nothing else runs."""
        while self.queue and self.crew.free(len(self.queue) + len(self.in_flight)):
            self.submit(self.queue.popleft())
        if self.suspects and not self.in_flight and self.crew.free(1):
            self.submit(self.suspects.popleft())

    def submit(self, work: Work) -> None:
        self.crew.submit(work)
        self.in_flight[work.key] = work

    def handle(self, event: Event) -> None:
        match event:
            case Done():
                self.barren_deaths = 0
                self.finish(event.work, event.record)
            case Raised():
                self.barren_deaths = 0
                self.raised(event)
            case Died():
                self.died(event)
            case Ready():
                self.telemetry.event("ready", worker=event.worker, seconds=event.seconds)
            case Health():
                self.telemetry.sample(event.worker, event.reading)

    def finish(self, work: Work, record: Record) -> None:
        """Write the record down, then let the bar know."""
        self.in_flight.pop(work.key, None)
        if self.store.append(record):
            self.progress.add(record)

    def fail(self, work: Work, worker: str, reason: str) -> None:
        """Give a problem up: it gets a record that says why, and counts as wrong."""
        problem_id, sample_index = work.key
        self.telemetry.event(
            "failed", worker=worker, problem_id=problem_id, sample_index=sample_index, reason=reason.strip()
        )
        self.finish(work, failed_record(work, worker, reason))

    def raised(self, event: Raised) -> None:
        """Try again, up to MAX_ATTEMPTS times in all."""
        self.in_flight.pop(event.work.key, None)
        self.errors[event.work.key] += 1
        if self.errors[event.work.key] >= MAX_ATTEMPTS:
            self.fail(event.work, event.worker, event.reason)
            return
        problem_id, sample_index = event.work.key
        self.telemetry.event(
            "retry", worker=event.worker, problem_id=problem_id, sample_index=sample_index, reason=event.reason
        )
        self.queue.appendleft(event.work._replace(attempt=event.work.attempt + 1))

    def died(self, event: Died) -> None:
        """All problems of a dead worker are owed again; a strike for each, since one of them may have killed it."""
        self.telemetry.event("death", worker=event.worker, reason=event.reason, lost=len(event.lost))
        self.barren_deaths += bool(event.lost)
        if self.barren_deaths >= MAX_BARREN_DEATHS:
            raise WorkersLost(
                f"{self.barren_deaths} workers died in a row without one answer; the last: {event.reason}"
            )
        for work in reversed(event.lost):
            self.in_flight.pop(work.key, None)
            self.strikes[work.key] += 1
            strikes = self.strikes[work.key]
            if strikes > MAX_STRIKES:
                self.fail(work, event.worker, f"its worker died {strikes} times, at last with it alone: {event.reason}")
                continue
            self.telemetry.event("requeue", worker=event.worker, problem_id=work.key[0], sample_index=work.key[1])
            again = work._replace(attempt=work.attempt + 1)
            if strikes >= MAX_STRIKES:
                self.suspects.append(again)
            else:
                self.queue.appendleft(again)


def drive(
    crew: Crew,
    store: RunStore,
    owed: Sequence[Work],
    telemetry: Telemetry,
    progress: Progress,
    stopped: Callable[[], object] = lambda: False,
) -> None:
    """Work `owed` off in the given order until every item has a record or `stopped()` is true.

    On a stop it returns at once: what is in flight has no record and stays owed. Raises what the crew raises.
    """
    run = Drive(crew, store, telemetry, progress, deque(owed))
    next_health = monotonic()
    while (run.queue or run.in_flight or run.suspects) and not stopped():
        run.fill()
        if monotonic() >= next_health:
            crew.ask_health()
            next_health = monotonic() + HEALTH_SECONDS
        for event in crew.wait(WAIT_SECONDS):
            run.handle(event)
        progress.refresh()


def failed_record(work: Work, worker: str, reason: str) -> Record:
    """The record of a problem that was given up."""
    return Record(
        problem_id=work.problem.problem_id,
        sample_index=work.sample_index,
        status="failed",
        text="",
        token_ids=[],
        ended="failed",
        scores={},
        chain={},
        timings={},
        memory={},
        tokens={},
        worker={"name": worker, "attempt": work.attempt},
        error=reason.strip(),
    )
