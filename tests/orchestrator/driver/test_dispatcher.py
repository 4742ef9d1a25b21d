"""The dispatcher against a simulated pool: order, refill, retries, strikes, stops; telemetry and progress with it."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from evals.config import TaskConfig
from evals.record import AnsweredBy, Record, Timings, TokenCounts
from evals.samplers.power import Power
from evals.sizing.slots import SlotChange
from evals.types import Grade, MemoryReading, Problem, WorkersLost
from orchestrator.analysis.accuracy import PRIMARY_METRIC, estimate, question_means
from orchestrator.cluster.stalls import (
    DEADLINE_SECONDS,
    LOAD_SECONDS,
    MISSING_SECONDS,
    STILL_SECONDS,
    Stall,
    detect_stall,
    is_missing,
)
from orchestrator.cluster.worker_handle import Call, WorkerHandle
from orchestrator.driver.dispatcher import HEALTH_SECONDS, MIN_RECORDS, WAIT_SECONDS, dispatch, failed_record, forecast
from orchestrator.live.progress import Progress
from orchestrator.machine.gpus import wait_for_free_memory
from orchestrator.rundir.reading.telemetry import events, read_telemetry, timings
from orchestrator.rundir.telemetry_rows import Event, TelemetryRow, WorkerState
from orchestrator.rundir.writing.run_store import RunStore, open_store
from orchestrator.rundir.writing.telemetry_log import Telemetry
from orchestrator.workers.inline_pool import InlineWorkerPool
from orchestrator.workers.pool import Died, Done, Health, Message, Raised, Work
from support.fake_worker import FakeWorker


def works(number: int) -> list[Work]:
    return [Work(Problem(i, "q", "#### 4"), 0, Power(), TaskConfig(), 0) for i in range(number)]


def answered(work: Work, correct: bool = True) -> Record:
    scores, worker = {"numeric": Grade(correct, "4")}, AnsweredBy(attempt=work.attempt)
    return Record(work.problem.problem_id, work.sample_index, "ok", "", [], "eos", scores, worker=worker)


def sample(worker: str, **fields: Any) -> WorkerState:
    return WorkerState(time=5.0, worker=worker, pid=1, **fields)


class SimulatedPool:
    """Answers a random problem in flight at every wait; some problems raise, some kill their worker."""

    def __init__(self, num_workers: int, slots: int, raising: Iterable[int] = (), poison: Iterable[int] = ()) -> None:
        self.slots, self.raising, self.poison = slots, set(raising), set(poison)
        self.workers: dict[str, list[Work]] = {f"w{i}": [] for i in range(num_workers)}
        """Name -> its problems in flight."""
        self.random = random.Random(0)
        self.submitted: list[int] = []
        self.in_flight: list[int] = []
        """Number at every wait."""
        self.num_health_requests = 0

    def die(self, name: str) -> list[Work]:
        lost, self.workers[name] = self.workers[name], []
        return lost

    def start(self) -> None: ...

    def close(self) -> None: ...

    def reload(self, config: Any, slots: int) -> None: ...

    def free_slots(self, unanswered: int) -> int:
        return sum(self.slots - len(held) for held in self.workers.values())

    def submit(self, work: Work) -> None:
        self.submitted.append(work.problem.problem_id)
        min(self.workers.values(), key=len).append(work)

    def request_health(self) -> set[str]:
        self.num_health_requests += 1
        return set(self.workers)

    def wait(self, timeout: float) -> list[Message]:
        self.in_flight.append(sum(map(len, self.workers.values())))
        if not any(self.workers.values()):
            return [Health(sample(name)) for name in self.workers]
        name = self.random.choice([name for name, held in self.workers.items() if held])
        held = self.workers[name]
        if killers := self.poison & {work.problem.problem_id for work in held}:
            return [Died(name, self.die(name), f"killed by {min(killers)}")]
        work = held.pop(self.random.randrange(len(held)))
        if work.problem.problem_id in self.raising:
            return [Raised(name, work, "ValueError: no")]
        return [Done(name, work, answered(work)), Health(sample(name, memory=MemoryReading(1, 1)))]


@pytest.fixture
def store(tmp_path: Path) -> Iterable[RunStore]:
    store = open_store(tmp_path / "run", {"fingerprint": "f"})
    yield store
    store.close()


def driven(store: RunStore, pool: Any, owed: list[Work], **options: Any) -> list[TelemetryRow]:
    telemetry = Telemetry(store.telemetry_path)
    dispatch(pool, store, owed, telemetry, Progress("run", len(owed), out=io.StringIO()), **options)
    telemetry.close()
    return read_telemetry(store.telemetry_path)


def test_every_problem_once_in_the_given_order_with_all_slots_busy(store: RunStore) -> None:
    pool = SimulatedPool(2, 3)
    rows = driven(store, pool, works(20))
    assert pool.submitted == list(range(20))
    assert pool.in_flight == [6] * 15 + [5, 4, 3, 2, 1] + [0], "slots are refilled at once"
    assert sorted(store.records) == [(i, 0) for i in range(20)]
    assert sum(isinstance(row, WorkerState) for row in rows) == 20 + 2, (
        "with every answer, and of both workers at the end"
    )
    assert pool.num_health_requests >= 1


def test_a_raising_problem_is_tried_three_times_and_recorded(store: RunStore) -> None:
    pool = SimulatedPool(1, 2, raising=[4])
    rows = driven(store, pool, works(6))
    assert pool.submitted.count(4) == 3
    failed = store.records[4, 0]
    assert (failed.status, failed.error, failed.worker.attempt) == ("failed", "ValueError: no", 3)
    assert [r.problem_id for r in store.records.values() if r.status == "failed"] == [4]
    assert (len(events(rows, "retry")), len(events(rows, "failed"))) == (2, 1)


def test_an_answer_that_no_line_of_json_can_carry_is_its_problems_failure(store: RunStore) -> None:
    class NotFinite(SimulatedPool):
        def wait(self, timeout: float) -> list[Message]:
            done, *others = super().wait(timeout)
            if isinstance(done, Done) and done.work.problem.problem_id == 2:
                done = done._replace(record=replace(done.record, timings=Timings(wall_seconds=float("nan"))))
            return [done, *others]

    pool = NotFinite(1, 2)
    driven(store, pool, works(4))
    assert pool.submitted.count(2) == 3
    failed = {i: r.error or "" for (i, _), r in store.records.items() if r.status == "failed"}
    assert failed.keys() == {2}
    assert failed[2].startswith("ValueError: Out of range float values are not JSON compliant")


def test_a_store_that_takes_no_record_at_all_ends_the_run(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(record: Record) -> bool:
        raise TypeError("this store takes nothing")

    monkeypatch.setattr(store, "append", refuses)
    pool = SimulatedPool(1, 2)
    with pytest.raises(TypeError, match="takes nothing"):
        driven(store, pool, works(4))
    assert max(map(pool.submitted.count, range(4))) == 3, "each problem is tried as often as any other that raises"


@pytest.mark.parametrize("slots", [1, 4])
def test_a_poison_problem_fails_alone_and_its_neighbours_are_cleared(store: RunStore, slots: int) -> None:
    rows = driven(store, SimulatedPool(2, slots, poison=[3]), works(12))
    assert [r.problem_id for r in store.records.values() if r.status == "failed"] == [3]
    assert len(store.records) == 12
    assert "its worker died 5 times, 2 of them with it alone: killed by 3" in (store.records[3, 0].error or "")
    assert len(events(rows, "death")) == 5
    assert len(events(rows, "requeue")) == sum(row.lost for row in events(rows, "death")) - 1


def test_one_death_alone_is_not_final(store: RunStore) -> None:
    class UnluckyAlone(SimulatedPool):
        """Problem 3 kills its workers, and something else the first that has only problem 5."""

        struck = False

        def wait(self, timeout: float) -> list[Message]:
            alone = next(
                (name for name, held in self.workers.items() if [w.problem.problem_id for w in held] == [5]), ""
            )
            if alone and not self.struck and self.submitted.count(5) > 3:
                self.struck = True
                return [Died(alone, self.die(alone), "killed by another")]
            return super().wait(timeout)

    pool = UnluckyAlone(1, 8, poison=[3])
    driven(store, pool, works(8))
    assert pool.struck
    assert [r.problem_id for r in store.records.values() if r.status == "failed"] == [3]
    assert store.records[5, 0].worker.attempt == 5


def test_lost_problems_go_to_the_front(store: RunStore) -> None:
    class DiesOnce(SimulatedPool):
        def wait(self, timeout: float) -> list[Message]:
            if self.num_health_requests == 1:
                self.num_health_requests += 1
                return [Died("w0", self.die("w0"), "unplugged")]
            return super().wait(timeout)

    pool = DiesOnce(1, 3)
    driven(store, pool, works(6))
    assert pool.submitted == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert {r.worker.attempt for r in store.records.values()} == {1, 2}


def test_a_machine_that_kills_every_worker_ends_the_run(store: RunStore) -> None:
    with pytest.raises(WorkersLost, match="workers died in a row without one answer"):
        driven(store, SimulatedPool(1, 2, poison=range(50)), works(50))
    assert not store.records


def test_a_death_is_told_in_one_sentence(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    driven(store, SimulatedPool(1, 2, poison=[1]), works(2))
    told = [line for line in capsys.readouterr().err.splitlines() if "was lost" in line]
    assert told[0] == "Worker w0 was lost (its process died); 2 answers are asked again."


def test_the_health_of_a_worker_after_its_last_answer_is_written_down(store: RunStore) -> None:
    class ShrinksLast(SimulatedPool):
        def wait(self, timeout: float) -> list[Message]:
            last = not any(self.workers.values())
            change = SlotChange(5.0, 4, 3, "out of memory")
            return [Health(sample(name), "", [change]) for name in self.workers] if last else super().wait(timeout)

    rows = driven(store, ShrinksLast(2, 4), works(9))
    assert [(row.worker, row.new) for row in events(rows, "slots")] == [("w0", 3), ("w1", 3)]


def test_silent_workers_do_not_keep_a_finished_run(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(SimulatedPool):
        def wait(self, timeout: float) -> list[Message]:
            clock.append(clock[-1] + timeout)
            return [event for event in super().wait(timeout) if not isinstance(event, Health)]

    clock = [100.0]
    monkeypatch.setattr("orchestrator.driver.dispatcher.monotonic", lambda: clock[-1])
    driven(store, Silent(1, 4), works(5))
    assert len(store.records) == 5
    assert clock[-1] == pytest.approx(100.0 + 5 * WAIT_SECONDS + HEALTH_SECONDS, abs=WAIT_SECONDS)


def test_a_stop_leaves_the_rest_owed(store: RunStore) -> None:
    pool = SimulatedPool(1, 4)
    driven(store, pool, works(20), stopped=lambda: len(store.records) >= 5)
    assert len(store.records) == 5
    assert len(store.owed([w.problem for w in works(20)], 1)) == 15


class Answers(FakeWorker):
    """A worker to which one problem cannot be given and another fails later."""

    closed = False
    broken: BaseException | None = None

    def __init__(self) -> None: ...

    def load(self, config: Any) -> None:
        assert config == "settings"

    def answer(self, work: Work) -> Record | Exception:
        if work.problem.problem_id == 1:
            raise ValueError("too long")
        return RuntimeError("lost") if work.problem.problem_id == 2 else answered(work)

    def failure(self) -> BaseException | None:
        return self.broken

    def close(self) -> None:
        self.closed = True


def test_inline_pool(store: RunStore) -> None:
    worker = Answers()
    pool = InlineWorkerPool(worker, "settings", 2)
    pool.start()
    rows = driven(store, pool, works(5))
    pool.close()
    assert {r.problem_id: r.error for r in store.records.values() if r.status == "failed"} == {
        1: "ValueError: too long",
        2: "RuntimeError: lost",
    }
    assert len(store.records) == 5
    assert worker.closed
    assert events(rows, "ready")
    assert any(isinstance(row, WorkerState) and row.pid == os.getpid() for row in rows)


class Failing(Answers):
    """Answers problem 0; at problem 1 the engine fails, and whatever is in flight or begins then raises."""

    def answer(self, work: Work) -> Record | Exception:
        if work.problem.problem_id == 0 and self.broken is None:
            return answered(work)
        self.broken = ValueError("out of memory")
        return self.broken


def test_a_failed_engine_ends_an_inline_run_after_its_last_answers_and_fails_no_problem(store: RunStore) -> None:
    pool = InlineWorkerPool(Failing(), "settings", 2)
    pool.start()
    with pytest.raises(WorkersLost, match="the engine has failed: out of memory"):
        driven(store, pool, works(5))
    assert [(key, record.status) for key, record in store.records.items()] == [((0, 0), "ok")]
    assert events(read_telemetry(store.telemetry_path), "retry") == []


def test_timings_add_up_over_starts_killed_or_not() -> None:
    def phase(time: float, name: str) -> Event:
        return Event(event="phase", time=time, name=name)

    rows = [
        Event(event="start", time=0),
        phase(0, "setup"),
        phase(2, "ray"),
        phase(5, "load"),
        phase(6, "sampling"),
        WorkerState(time=16.0, worker="w0"),  # killed here
        Event(event="start", time=100),
        phase(100, "setup"),
        phase(101, "ray"),
        phase(103, "load"),
        phase(107, "waiting"),
        phase(200, "sampling"),
        Event(event="tail", time=204, seconds=1.5),
        phase(205, "end"),
        Event(event="torn_tail", time=300, bytes=1),
    ]
    assert asdict(timings(rows)) == {
        "setup_seconds": 3.0,
        "ray_seconds": 5.0,
        "load_seconds": 5.0,
        "sampling_seconds": 15.0,
        "total_seconds": 28.0,
        "num_starts": 2,
        "tail_seconds": 1.5,
    }
    assert timings([]).total_seconds == 0


def test_a_torn_telemetry_row_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    path.write_text('{"kind": "event", "time": 1, "event": "start"}\n{"kind"')
    telemetry = Telemetry(path)
    telemetry.write(Event(event="phase", name="setup", time=4.5))
    telemetry.close()
    assert [row.time for row in read_telemetry(path)] == [1, 4.5]


def test_progress_prints_plain_lines_and_counts_what_was_done() -> None:
    out = io.StringIO()
    done = [answered(work, correct=work.problem.problem_id < 2) for work in works(4)]
    progress = Progress("power", 8, done[:3], out)
    progress.add(done[3])
    progress.add(failed_record(works(5)[4], "w", "no"))
    progress.add_row(sample("w0", memory=MemoryReading(2 << 30, 2 << 30)))
    progress.close()
    assert out.getvalue().startswith("power: 5 of 8, numeric 40.0 ± 24.5 %, 2.00 GiB per worker, ")


def test_progress_shows_the_primary_metric_with_the_error_of_the_report() -> None:
    out = io.StringIO()
    records = [answered(work, correct=work.problem.problem_id < 1) for work in works(4) for _ in range(2)]
    progress = Progress("power", 8, records[:2], out)
    progress.close()
    for record in records[2:]:
        progress.add(record)
    progress.close()
    score = estimate(question_means(records, PRIMARY_METRIC))
    first, last = out.getvalue().splitlines()
    assert first == f"power: 2 of 8, {PRIMARY_METRIC} 100.0 %"
    assert last == f"power: 8 of 8, {PRIMARY_METRIC} {score.words} %"


def test_a_stall_strikes_only_what_was_late_and_a_lost_node_nothing(store: RunStore) -> None:
    class Unlucky(SimulatedPool):
        """Everything in flight is lost five times with the node; then problem 1 stalls its worker every time."""

        nodes = 5

        def wait(self, timeout: float) -> list[Message]:
            lost = self.workers["w0"]
            late = [work for work in lost if work.problem.problem_id == 1]
            if lost and self.nodes:
                self.nodes -= 1
                return [Died("w0", self.die("w0"), "its node is gone", "node", [])]
            if late:
                return [Died("w0", self.die("w0"), "late", "hang", late)]
            return super().wait(timeout)

    rows = driven(store, Unlucky(1, 3), works(6))
    assert [r.problem_id for r in store.records.values() if r.status == "failed"] == [1]
    assert len(store.records) == 6
    assert (len(events(rows, "hang")), len(events(rows, "death"))) == (5, 10)
    assert {row.cause for row in events(rows, "death")} == {"node", "hang"}


@pytest.mark.parametrize("cause", [("node", []), ()], ids=["known", "not yet known"])
def test_many_workers_lost_with_their_node_do_not_end_the_run(store: RunStore, cause: Any) -> None:
    class NodeGone(SimulatedPool):
        gone = False

        def wait(self, timeout: float) -> list[Message]:
            if not self.gone:
                self.gone = True
                return [Died(name, self.die(name), "gone", *cause) for name in self.workers]
            return super().wait(timeout)

    driven(store, NodeGone(16, 1), works(20))
    assert {record.status for record in store.records.values()} == {"ok"}


def test_a_lost_device_is_said_and_the_run_goes_on(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    class OneGone(SimulatedPool):
        def wait(self, timeout: float) -> list[Message]:
            if "w1" in self.workers:
                lost = Event(event="lost", time=5.0, worker="w1", reason="it could not start 3 times")
                return [Died("w1", self.workers.pop("w1"), "off the bus"), lost]
            return super().wait(timeout)

    rows = driven(store, OneGone(2, 1), works(8))
    assert len(store.records) == 8
    assert "Worker w1 is missing, going on with the others: it could not start" in capsys.readouterr().err
    assert [row.worker for row in events(rows, "lost")] == ["w1"]


def test_long_questions_go_first_until_answers_say_otherwise(store: RunStore) -> None:
    class Short(SimulatedPool):
        """The longer the question, the shorter the answer."""

        def wait(self, timeout: float) -> list[Message]:
            done = super().wait(timeout)[0]
            if not isinstance(done, Done):
                return [done]
            cost = TokenCounts(generated=1000 - len(done.work.problem.question))
            return [done._replace(record=replace(done.record, tokens=cost))]

    owed = [work._replace(problem=Problem(i, "q" * i, "#### 4")) for i, work in enumerate(works(100))]
    pool = Short(1, 1)
    driven(store, pool, owed)
    assert pool.submitted[:32] == list(range(99, 67, -1))
    assert pool.submitted[32:] == list(range(68))


def test_a_forecast_is_the_line_of_least_squares_and_knows_what_a_problem_has_cost() -> None:
    lengths = {i: 10 * i for i in range(41)}
    records = [replace(answered(work), tokens=TokenCounts(generated=5 * i + 7)) for i, work in enumerate(works(40))]
    assert forecast(lengths, records[: MIN_RECORDS - 1])(3) == 30
    assert forecast(lengths, records)(40) == pytest.approx(207)
    assert forecast(dict.fromkeys(range(41), 7), records)(40) == pytest.approx(5 * 19.5 + 7), (
        "all questions alike: the mean"
    )
    outlier = replace(records[3], sample_index=1, tokens=TokenCounts(generated=1022))
    assert forecast(lengths, [*records, outlier])(3) == 522


def test_the_tail_lasts_from_the_first_idle_slot_to_the_end(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clocked(SimulatedPool):
        def wait(self, timeout: float) -> list[Message]:
            clock.append(clock[-1] + 1.0)
            return super().wait(timeout)

    clock = [100.0]
    monkeypatch.setattr("orchestrator.driver.dispatcher.monotonic", lambda: clock[-1])
    rows = driven(store, Clocked(2, 2), works(10))
    assert [row.seconds for row in events(rows, "tail")] == [3.0]  # of ten seconds the last three with a free slot


def loaded_handle(**changes: Any) -> WorkerHandle:
    calls = {i: Call(work, 100.0 + i) for i, work in enumerate(works(3))}
    handle = WorkerHandle(0, "gpu0", actor="actor", progressed_at=100.0, load_seconds=20.0, calls=calls)
    return replace(handle, **changes)


def test_patience_with_a_worker_that_takes_no_step() -> None:
    handle = loaded_handle()
    assert detect_stall(handle, 100.0 + STILL_SECONDS, 0.0, joined=False) is None
    stall = detect_stall(handle, 101.0 + STILL_SECONDS, 0.0, joined=False)
    assert stall is not None
    assert [work.problem.problem_id for work in stall.blamed] == [0, 1, 2]
    slow = loaded_handle(load_seconds=STILL_SECONDS)
    assert detect_stall(slow, 101.0 + STILL_SECONDS, 0.0, joined=False) is None, "compiling took as long when it loaded"
    assert detect_stall(loaded_handle(calls={}), 1e6, 0.0, joined=False) is None, "it has nothing to do"
    assert detect_stall(loaded_handle(calls={}, cancelled={"call"}), 1e6, 0.0, joined=False) is None, "nor with those"


def test_patience_with_a_problem_while_others_get_on() -> None:
    late = 100.5 + DEADLINE_SECONDS
    stall = detect_stall(loaded_handle(progressed_at=late), late, 0.0, joined=False)
    assert stall is not None
    assert [work.problem.problem_id for work in stall.blamed] == [0]
    assert detect_stall(loaded_handle(progressed_at=late), late, DEADLINE_SECONDS, joined=False) is None, (
        "answers take that long here"
    )
    again = {0: Call(works(1)[0]._replace(attempt=2), 100.0)}
    assert detect_stall(loaded_handle(progressed_at=late, calls=again), late, 0.0, joined=False) is None, (
        "twice the time at the second try"
    )


def test_patience_with_a_load_and_with_a_place() -> None:
    late = 101.0 + LOAD_SECONDS
    loading = loaded_handle(calls={}, load="load")
    assert detect_stall(loading, 100.0 + LOAD_SECONDS, 0.0, joined=False) is None
    assert detect_stall(loading, late, 0.0, joined=False) == Stall(
        f"it began to load the model and did not get on for {LOAD_SECONDS:.0f} s", []
    )
    assert detect_stall(loading, late, 0.0, joined=True) is not None, "it has its place"
    assert detect_stall(loaded_handle(actor=None, calls={}), late, 0.0, joined=False) is None, (
        "nobody is there to stall"
    )
    waiting = replace(loading, placement="ready", requested_at=50.0)
    assert detect_stall(waiting, late, 0.0, joined=True) is None, "others have the device"
    assert detect_stall(waiting, late, 0.0, joined=False) is not None
    assert not is_missing(waiting, 50.0 + MISSING_SECONDS)
    assert is_missing(waiting, 51.0 + MISSING_SECONDS), "since it was asked for"
    assert not is_missing(replace(waiting, missing=True), 51.0 + MISSING_SECONDS), "it is said once"
    assert not is_missing(loading, 101.0 + MISSING_SECONDS)


def test_room_is_waited_for_until_a_dead_workers_memory_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.machine.gpus.POLL_SECONDS", 0.0)
    readings = iter([10, 20, 96, 100])
    assert wait_for_free_memory(100, lambda: next(readings)) == 96
    assert wait_for_free_memory(None, lambda: 10) == 10
    assert wait_for_free_memory(100, lambda: None) is None
    monkeypatch.setattr("orchestrator.machine.gpus.RELEASE_SECONDS", 0.0)
    assert wait_for_free_memory(100, lambda: 10) == 10, "the load will tell whether that is enough"
