"""The dispatcher: gives owed problems to workers, stores their records, and decides what to do about failures.

A worker with a free slot gets the next owed problem; no slot waits for a batch. Only the dispatcher writes to the
store. A `WorkerPool` does the work. Problems expected to take longest go first, so that none of them begins last.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, linear_regression
from time import monotonic
from typing import TYPE_CHECKING

from evals.record import AnsweredBy, Record, RecordKey
from evals.types import WorkersLost
from orchestrator.console import say
from orchestrator.rundir.telemetry_rows import Event, EventName, TelemetryRow, WorkerState
from orchestrator.workers.pool import Died, Done, Health, Message, Raised, Work, WorkerPool

if TYPE_CHECKING:
    from orchestrator.live.progress import Progress
    from orchestrator.rundir.writing.run_store import RunStore
    from orchestrator.rundir.writing.telemetry_log import Telemetry

MAX_ATTEMPTS = 3  # times that a problem may raise before it is recorded as failed
MAX_STRIKES = 3  # deaths of a worker with this problem in flight before the problem has to run alone
MAX_DEATHS_ALONE = 2  # deaths with it alone before it is recorded as failed: one may have had another cause
MAX_BARREN_DEATHS = 8  # deaths of one worker with no answer of any worker between: the machine is at fault
MIN_RECORDS = 32  # below, a fitted line predicts costs worse than the length of the question alone
HEALTH_SECONDS = 2.0
DEATHS = {"crash": "its process died", "hang": "it hung", "oom": "out of memory", "node": "its node is gone"}
WAIT_SECONDS = 0.2  # longest time until a signal is noticed


@dataclass
class Dispatcher:
    """Work while it is done: what is owed, in flight and suspected."""

    pool: WorkerPool
    answered: Callable[[Work, Record], object]
    """Takes a record; raises TypeError or ValueError for one that cannot be kept."""
    write: Callable[[TelemetryRow], object]
    write_state: Callable[[WorkerState], object]
    records: Mapping[RecordKey, Record] = field(default_factory=dict)
    """Those so far, by which the cost of the others is told."""
    say: Callable[[str], object] = say
    queue: deque[Work] = field(default_factory=deque)
    lengths: dict[int, int] = field(default_factory=dict)
    """problem_id -> length of its question."""
    in_flight: dict[tuple[int, int, int], Work] = field(default_factory=dict)
    """By `Work.identity`, as all below."""
    errors: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    strikes: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    suspects: deque[Work] = field(default_factory=deque)
    """Problems with too many strikes: they run last and alone, so that a harmless one gets its answer."""
    barren_deaths: Counter[str] = field(default_factory=Counter)
    """Deaths of each worker since the last answer; counted apart, as those of several at once may be one accident."""
    next_order: int = MIN_RECORDS
    """Number of records at which the queue is sorted again."""
    notes: set[str] = field(default_factory=set)
    """Notes of workers that were shown to the user."""
    idle_since: float | None = None
    """When the first slot had no problem left to take (monotonic seconds)."""

    def order(self) -> None:
        """Sort the queue: problems that were begun before come first, then those expected to take longest."""
        expected = forecast(self.lengths, self.records.values())
        self.queue = deque(sorted(self.queue, key=lambda work: (work.attempt == 1, -expected(work.problem.problem_id))))
        self.next_order = max(MIN_RECORDS, 2 * len(self.records))

    def fill(self) -> None:
        """Submit work while there are free slots; a suspect only when nothing else is in flight."""
        while self.queue and self.pool.free_slots(len(self.queue) + len(self.in_flight)):
            self.submit(self.queue.popleft())
        if self.suspects and not self.in_flight and self.pool.free_slots(1):
            self.submit(self.suspects.popleft())
        if self.idle_since is None and not self.queue and self.pool.free_slots(1):
            self.idle_since = monotonic()

    def submit(self, work: Work) -> None:
        """Give a problem to the pool."""
        self.pool.submit(work)
        self.in_flight[work.identity] = work

    def forget(self, serials: Container[int]) -> None:
        """Take back the work of these serial numbers, done or not."""
        self.queue = deque(work for work in self.queue if work.serial not in serials)
        self.suspects = deque(work for work in self.suspects if work.serial not in serials)
        for work in [work for work in self.in_flight.values() if work.serial in serials]:
            self.pool.cancel(self.in_flight.pop(work.identity))

    def handle(self, message: Message) -> None:
        """Act on a message of the pool. Raises WorkersLost where workers die without end."""
        match message:
            case Done():
                self.barren_deaths.clear()
                try:
                    self.finish(message.work, message.record)
                except (TypeError, ValueError) as error:  # a number that is not finite, say
                    self.raised(message.worker, message.work, f"{type(error).__name__}: {error}")
            case Raised():
                self.barren_deaths.clear()
                self.raised(message.worker, message.work, message.reason)
            case Died():
                self.died(message)
            case Health():
                self.record_health(message)
            case Event():
                self.write(message)
                if message.event == "lost":
                    self.say(f"Worker {message.worker} is missing, going on with the others: {message.reason}")

    def record_health(self, health: Health) -> None:
        """Write a worker's health to the telemetry; say its notes (equal ones once) and its changes of slots."""
        for change in health.slot_changes:
            self.write(Event(event="slots", worker=health.worker, **change._asdict()))
            self.say(f"Worker {health.worker} goes on with {change.new} slots instead of {change.old}: {change.reason}")
        if health.notes and health.notes not in self.notes:
            self.notes.add(health.notes)
            self.say(health.notes)
        self.write_state(health.state)

    def finish(self, work: Work, record: Record) -> None:
        """Hand a record on. Raises what `answered` raises, for a record that is no JSON as well."""
        self.in_flight.pop(work.identity, None)
        self.answered(work, record)
        if len(self.records) >= self.next_order:
            self.order()

    def tell(self, event: EventName, worker: str, work: Work, reason: str | None = None) -> None:
        """Write what became of a problem as a row of the telemetry."""
        problem_id, sample_index = work.key
        row = Event(event=event, worker=worker, problem_id=problem_id, sample_index=sample_index)
        self.write(row if reason is None else row.model_copy(update={"reason": reason}))

    def fail(self, work: Work, worker: str, reason: str) -> None:
        """Give a problem up: store a record that says why; it counts as wrong."""
        self.tell("failed", worker, work, reason.strip())
        self.finish(work, failed_record(work, worker, reason))

    def raised(self, worker: str, work: Work, reason: str) -> None:
        """Queue a problem that raised again, or give it up after MAX_ATTEMPTS attempts."""
        self.in_flight.pop(work.identity, None)
        self.errors[work.identity] += 1
        if self.errors[work.identity] >= MAX_ATTEMPTS:
            self.fail(work, worker, reason)
        else:
            self.tell("retry", worker, work, reason)
            self.queue.appendleft(work._replace(attempt=work.attempt + 1))

    def died(self, death: Died) -> None:
        """Queue all problems of a dead worker again, with a strike for each that may have killed it.

        Raises WorkersLost after too many deaths without an answer.
        """
        for row in death.rows():
            self.write(row)
        again = f"{len(death.unanswered)} answer{'s are' if len(death.unanswered) != 1 else ' is'} asked again"
        self.say(f"Worker {death.worker} was lost ({DEATHS[death.cause]}); {again}.")
        suspected = {work.identity for work in death.suspected}
        self.barren_deaths[death.worker] += bool(suspected)
        if self.barren_deaths[death.worker] >= MAX_BARREN_DEATHS:
            deaths = self.barren_deaths.total()
            raise WorkersLost(f"{deaths} workers died in a row without one answer; the last: {death.reason}")
        for work in reversed(death.unanswered):
            self.in_flight.pop(work.identity, None)
            self.strikes[work.identity] += work.identity in suspected
            strikes = self.strikes[work.identity]
            if strikes >= MAX_STRIKES + MAX_DEATHS_ALONE and work.identity in suspected:
                times = f"{strikes} times, {MAX_DEATHS_ALONE} of them with it alone"
                self.fail(work, death.worker, f"its worker died {times}: {death.reason}")
                continue
            self.tell("requeue", death.worker, work)
            again = work._replace(attempt=work.attempt + 1)
            self.suspects.append(again) if strikes >= MAX_STRIKES else self.queue.appendleft(again)


def dispatch(
    pool: WorkerPool,
    store: RunStore,
    owed: Sequence[Work],
    telemetry: Telemetry,
    progress: Progress,
    stopped: Callable[[], object] = lambda: False,
) -> None:
    """Have the pool answer all `owed` problems, until each has a record or `stopped()` is true.

    On a stop it returns at once: what is in flight has no record and stays owed. At the end the workers are asked once
    more for their health, whose notes would be lost otherwise. Raises what the pool raises.
    """
    lengths = {work.problem.problem_id: len(work.problem.question) for work in owed}

    def answered(work: Work, record: Record) -> None:
        if store.append(record):
            progress.add(record)

    run = Dispatcher(pool, answered, telemetry.write, telemetry.write_state, store.records)
    run.queue, run.lengths = deque(owed), lengths
    run.order()
    next_health = monotonic()
    while (run.queue or run.in_flight or run.suspects) and not stopped():
        run.fill()
        if monotonic() >= next_health:
            pool.request_health()
            next_health = monotonic() + HEALTH_SECONDS
        for message in pool.wait(WAIT_SECONDS):
            run.handle(message)
        progress.refresh()
    if run.idle_since is not None:
        telemetry.write(Event(event="tail", seconds=monotonic() - run.idle_since))
    awaited, until = set() if stopped() else pool.request_health(), monotonic() + HEALTH_SECONDS
    while awaited and not stopped() and monotonic() < until:
        for message in pool.wait(WAIT_SECONDS):
            run.handle(message)
            awaited.discard(message.worker)


def forecast(lengths: Mapping[int, int], records: Iterable[Record]) -> Callable[[int], float]:
    """Returns a function problem_id -> expected cost of an answer, in tokens once there are enough records.

    `lengths` are the lengths of the questions, by problem_id; with fewer than MIN_RECORDS they are the costs. A problem
    that has answers costs their mean, any other what a least-squares line through (length of the question, tokens
    generated for an answer) predicts.
    """
    costs: defaultdict[int, list[int]] = defaultdict(list)
    for record in records:
        if record.tokens.generated and record.problem_id in lengths:
            costs[record.problem_id].append(record.tokens.generated)
    xs = [lengths[problem_id] for problem_id, each in costs.items() for _ in each]
    ys = [cost for each in costs.values() for cost in each]
    if len(ys) < MIN_RECORDS:
        return lambda problem_id: lengths[problem_id]
    slope, intercept = linear_regression(xs, ys) if len(set(xs)) > 1 else (0.0, fmean(ys))
    means = {problem_id: fmean(each) for problem_id, each in costs.items()}
    return lambda problem_id: means.get(problem_id, intercept + slope * lengths[problem_id])


def failed_record(work: Work, worker: str, reason: str) -> Record:
    """The record of a problem that was given up."""
    error, by = reason.strip().encode(errors="replace").decode(), AnsweredBy(name=worker, attempt=work.attempt)
    return Record(*work.key, "failed", "", [], "failed", worker=by, error=error, group=work.problem.group)
