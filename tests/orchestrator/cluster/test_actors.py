"""The Ray pool with fake workers: one cluster for the happy path and a killed actor, one for loads that fail."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from evals.config import EngineConfig, TaskConfig
from evals.record import AnsweredBy, Record
from evals.samplers.power import Power
from evals.types import Problem, UserError, WorkersLost
from orchestrator.driver.dispatcher import dispatch
from orchestrator.live.progress import Progress
from orchestrator.rundir.reading.telemetry import events, read_telemetry
from orchestrator.rundir.telemetry_rows import Event, WorkerState
from orchestrator.rundir.writing.run_store import open_store
from orchestrator.rundir.writing.telemetry_log import Telemetry
from orchestrator.settings.config import RunConfig
from orchestrator.workers.pool import Died, Done, Health, Message, Work

pytestmark = [pytest.mark.ray, pytest.mark.serial]


def fake_worker() -> type:
    """A class of its own scope, so that Ray sends it by value and needs no import of this file."""

    class Fake:
        def __init__(self, rank: int, name: str) -> None:
            self.rank, self.name = rank, name

        def __repr__(self) -> str:
            return self.name

        def load(self, config: str) -> None:
            if config == "bad model":
                raise UserError("The model is of an architecture that is not supported.")
            if config == "broken":
                raise RuntimeError("no memory")

        def health(self) -> Health:
            devices = os.environ["CUDA_VISIBLE_DEVICES"]
            return Health(WorkerState(time=time.time(), worker=self.name, pid=os.getpid(), rank=self.rank), devices)

        def solve(self, work: Work) -> Record:
            i = work.problem.problem_id
            if i == 5:
                raise ValueError("cannot")
            if i == 7 and work.attempt == 1:
                os._exit(1)
            return Record(i, work.sample_index, "ok", "", [], "eos", worker=AnsweredBy(self.rank))

    return Fake


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Iterable[Any]:
    """Makes pools and ends them."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    from orchestrator.cluster.actors import RayWorkerPool

    made = []

    def make(config: str, worker: type | None = None, slots: int = 1, **run: Any) -> RayWorkerPool:
        run = {"num_gpus": 0, "dashboard": False} | run
        made.append(RayWorkerPool(worker or fake_worker(), config, RunConfig(**run), slots))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def ready(messages: Iterable[Message]) -> list[Event]:
    return [message for message in messages if isinstance(message, Event) and message.event == "ready"]


class Killer:
    """A pool in front of another that kills a worker once, after problem 7 did."""

    def __init__(self, pool: Any) -> None:
        self.pool, self.deaths, self.killed = pool, 0, False
        self.pids: dict[str, int] = {}
        self.seen: list[Message] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)

    def wait(self, timeout: float) -> list[Message]:
        messages: list[Message] = self.pool.wait(timeout)
        self.seen += messages
        self.pids |= {message.worker: message.state.pid or 0 for message in messages if isinstance(message, Health)}
        for message in messages:
            if isinstance(message, Died):
                self.pids.pop(message.worker, None)
        if ready(messages):
            self.pool.request_health()
        self.deaths += sum(isinstance(message, Died) for message in messages)
        if not self.killed and self.deaths and self.pids:
            os.kill(next(iter(self.pids.values())), signal.SIGKILL)
            self.killed = True
        return messages


NUMBER = 400


def works(number: int) -> list[Work]:
    return [Work(Problem(i, "q", "#### 4"), 0, Power(), TaskConfig(), 0) for i in range(number)]


def test_a_run_survives_killed_actors(tmp_path: Path, pools: Any) -> None:
    store = open_store(tmp_path, {"fingerprint": "f"})
    telemetry = Telemetry(store.telemetry_path)
    pool: Any = Killer(pools("model", num_workers=2, slots=3))
    pool.start()
    while len(ready(pool.seen)) < 2:
        pool.wait(1.0)
    dispatch(pool, store, works(NUMBER), telemetry, Progress("run", NUMBER, out=io.StringIO()))
    telemetry.close()
    store.close()
    assert sorted(store.records) == [(i, 0) for i in range(NUMBER)]
    assert {r.problem_id: r.error for r in store.records.values() if r.status == "failed"} == {5: "ValueError: cannot"}
    rows = read_telemetry(tmp_path / "telemetry.jsonl")
    assert pool.killed
    assert len(events(rows, "death")) == 2
    assert {event.notes for event in pool.seen if isinstance(event, Health)} == {""}


def worker_that_waits() -> type:
    """As the real one, but that first attempts have no answer, and that problem 0 begins only once `go` is set."""
    import threading
    from concurrent.futures import Future

    from orchestrator.workers.worker import Worker

    class Waits(Worker):
        def load(self, config: Any, room: int | None = None) -> None:
            self.go = threading.Event()

        def failure(self) -> None: ...

        def health(self) -> Health:
            return Health(WorkerState(worker=self._name, pid=os.getpid()))

        def begin(self, work: Work) -> Future[Record]:
            answer = Future[Record]()
            if work.problem.problem_id == 0:
                self.go.wait()
            if work.attempt > 1:
                answer.set_result(Record(*work.key, "ok", "", [], "eos", worker=AnsweredBy(self._rank)))
            return answer

    return Waits


def until(pool: Any, kind: type[Message], event: str = "") -> Any:
    """The next message of this kind; none before it is about work."""
    while True:
        for message in pool.wait(0.1):
            if isinstance(message, kind) and event in ("", getattr(message, "event", None)):
                return message
            assert isinstance(message, Event | Health), message


def test_cancelled_calls_end_begun_or_not_and_nobody_hears_of_them(pools: Any) -> None:
    """A worker of one thread, so that a call that has not begun holds up all behind it."""
    pool = pools("model", worker_that_waits(), num_workers=1)
    pool.start()
    until(pool, Event, "ready")
    pid = until(pool, Health).state.pid
    begins, waits = works(2)

    def ask(question: Any) -> Any:
        ray = sys.modules["ray"]
        return ray.get(pool._handles[0].actor.__ray_call__.remote(question))

    def given_up(*works: Work) -> None:
        for work in works:
            assert pool.free_slots(9) == 1
            pool.submit(work)
            assert pool.free_slots(9) == 0
            pool.cancel(work)
            pool.cancel(work)
        assert pool.free_slots(9) == 1

    given_up(begins, waits)
    while ask(lambda actor: len(actor._cancelled)) < 2:
        pass
    pool.submit(again := waits._replace(attempt=2))  # the same key
    ask(lambda actor: actor.go.set())
    assert until(pool, Done).work is again

    pool.submit(waits)
    while not ask(lambda actor: len(actor._under_way)):
        pass
    pool.cancel(waits)
    pool.submit(again)
    assert until(pool, Done).work is again
    pool.cancel(again)  # which has ended
    pool.submit(again)
    assert until(pool, Done).work is again
    assert ask(lambda actor: len(actor._under_way)) == 0

    ask(lambda actor: actor.go.clear())
    given_up(begins)
    os.kill(pid, signal.SIGKILL)
    assert until(pool, Died).unanswered == []
    until(pool, Event, "ready")
    pid = until(pool, Health).state.pid
    given_up(begins)
    pool.submit(waits)
    os.kill(pid, signal.SIGKILL)
    assert until(pool, Died).unanswered == [waits]


def wait_for_ever(pool: Any) -> None:
    while True:
        pool.wait(1.0)


def test_failing_loads_end_the_run_with_their_cause(pools: Any) -> None:
    pool = pools("bad model", num_workers=1)
    pool.start()
    with pytest.raises(UserError, match=r"^The model is of an architecture that is not supported\.$"):
        wait_for_ever(pool)
    from ray.exceptions import RayError

    pool._config = "broken"
    pool._down(pool._handles[0], RayError("as if it had died"))
    with pytest.raises(WorkersLost, match=r"cpu0 could not start 3 times: (.|\n)*no memory"):
        wait_for_ever(pool)


@pytest.mark.parametrize(("num_workers", "each"), [(3, 1), (1, 3)])
def test_more_gpus_than_present_fails_fast(
    num_workers: int, each: int, pools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr("ray.init", lambda **options: calls.append(options))
    monkeypatch.setattr("ray.shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    pool = pools("model", num_gpus=num_workers * each, engine=EngineConfig(gpus_per_model=each))
    with pytest.raises(UserError, match="3 GPUs are asked for and Ray finds 2"):
        pool.start()
    assert calls[-1] == "shutdown"
    assert "num_gpus" not in calls[0]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ("AuthenticationError", UserError, "do not agree on a token; set RAY_AUTH_TOKEN or"),
        ("Exception", WorkersLost, "^Ray did not start: as if$"),
    ],
)
def test_ray_that_does_not_come_up_is_one_sentence(
    error: str, kind: type[Exception], words: str, pools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: Any) -> None:
        raise getattr(sys.modules["ray.exceptions"], error, Exception)("as if")

    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(kind, match=words):
        pools("model", num_workers=1).start()


def test_ray_is_closed_to_strangers_and_reports_to_nobody() -> None:
    shown = "os.environ['RAY_AUTH_MODE'], os.environ['RAY_USAGE_STATS_ENABLED']"
    code = f"import os, orchestrator.cluster.actors; print({shown})"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    out = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["token", "0"]


def test_ray_is_started_again_where_a_dead_agent_takes_its_node_along_but_not_for_ever(
    pools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cluster.actors.MAX_REVIVALS", 1)
    pool = pools("model", num_workers=1)
    pool.start()
    for _ in range(2):
        while not ready(pool.wait(1.0)):
            pass
        raylet = sys.modules["ray"]._private.worker._global_node.all_processes["raylet"][0].process.pid
        os.kill(child(raylet, b"ray::DashboardAgent"), signal.SIGKILL)
    with pytest.raises(WorkersLost, match="Ray's node is gone"):
        wait_for_ever(pool)


def child(parent: int, title: bytes) -> int:
    """The process of that title that `parent` started."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title):
            return int(pid)
    raise AssertionError(f"no {title!r} below {parent}")


def worker_that_loads_once() -> type:
    """Of rank 1 only the first actor loads; later ones find no memory, as on a device that is lost."""

    class LoadsOnce:
        def __init__(self, rank: int, name: str) -> None:
            self.rank, self.name = rank, name

        def load(self, marker: str) -> None:
            if self.rank == 1:
                if Path(marker).exists():
                    raise UserError("10 slots need 9 GiB, 1 GiB is free.")
                Path(marker).touch()

        def health(self) -> Health:
            return Health(WorkerState(time=time.time(), worker=self.name, pid=os.getpid()))

        def solve(self, work: Work) -> Record:
            if self.rank == 1:
                os._exit(1)
            return Record(work.problem.problem_id, 0, "ok", "", [], "eos", worker=AnsweredBy(self.rank))

    return LoadsOnce


def test_a_device_that_is_lost_is_told_and_the_others_finish(
    tmp_path: Path, pools: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(tmp_path / "run", {"fingerprint": "f"})
    telemetry = Telemetry(store.telemetry_path)
    pool = pools(str(tmp_path / "loaded"), worker_that_loads_once(), num_workers=2)
    pool.start()
    while sum(isinstance(event, Health) for event in pool.wait(0.2)) + pool.free_slots(2) < 2:
        pass
    lost = False
    while not lost:  # work goes on while the lost one is tried again
        owed = [work for work in works(len(store.records) + 50) if work.key not in store.records]
        dispatch(pool, store, owed, telemetry, Progress("run", len(owed), out=io.StringIO()))
        lost = bool(events(read_telemetry(store.telemetry_path), "lost"))
    telemetry.close()
    store.close()
    assert {record.status for record in store.records.values()} == {"ok"}
    rows = read_telemetry(tmp_path / "run/telemetry.jsonl")
    assert [row.worker for row in events(rows, "lost")] == ["cpu1"]
    assert [row.worker for row in events(rows, "spawn")].count("cpu1") >= 3
    assert "Worker cpu1 is missing, going on with the others: it could not start 3 times" in capsys.readouterr().err
