"""Everything that can go wrong, at set numbers of records, in one run on Ray: it ends as an undisturbed run does.

The real command, the embedded model and three actors. Every fault is counted where it happens: a fault that did not
happen proves nothing. The poison problem goes first in every life, so that its three strikes leave work for the faults
that must not hit a problem that runs alone: two of those would have it recorded as failed.
"""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from evals.record import Record
from orchestrator.rundir.directory import RECORDS, TELEMETRY
from orchestrator.rundir.reading.telemetry import events, read_telemetry
from orchestrator.rundir.telemetry_rows import Event, EventName
from support.command import python
from support.logs import read_records
from support.places import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.serial, pytest.mark.ray, pytest.mark.timeout(1800)]

BUSY: dict[str, Any] = {"RAY_worker_niceness": 0, "timeout": 600}  # niceness 15 starves workers on a busy machine
NUMBER, SLOTS = 400, 12
POISON = 217
TORN = b'{"problem_id": 3, "sam'

DRIVER = f"""
import contextlib, json, math, os, resource, signal, sys, threading
from orchestrator.cluster import stalls
from orchestrator.driver import dispatcher
from orchestrator.driver import session
from orchestrator.cli import main
from orchestrator.rundir.writing.run_store import RunStore
from orchestrator.workers.worker import Worker

plan = json.loads(sys.argv[1])
marks = plan["marks"]

def first(name):
    try:
        os.close(os.open(os.path.join(marks, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def count(name):
    with open(os.path.join(marks, name), "a") as file:
        print(os.getpid(), file=file)

def lines(name):
    path = os.path.join(marks, name)
    return open(path).read().split() if os.path.exists(path) else []

class Faulty(Worker):
    def __init__(self, rank, name):
        super().__init__(rank, name)
        self.turn = threading.Lock()  # taken by the one fault of this process

    def begin(self, work):
        i = work.problem.problem_id
        if i == {POISON}:
            if plan["inline"]:
                raise ValueError("poison")
            count("poison")
            os.kill(os.getpid(), signal.SIGKILL)
        killed = lines("poison")
        clear = len(killed) >= plan.get("hang_after", 1000)  # the poison waits to run alone, and ends no other fault
        if clear and str(os.getpid()) not in killed and not plan["inline"] and self.turn.acquire(blocking=False):
            if first("freeze"):
                os.kill(os.getpid(), signal.SIGSTOP)
            elif first("hang"):
                threading.Event().wait()  # this problem alone; the others of its worker get on
        return super().begin(work)

append = RunStore.append
def append_and_strike(store, record):
    if len(store.records) == plan.get("full_at"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (store._size + 50, resource.RLIM_INFINITY))
        count("full")
    added = append(store, record)
    if plan.get("kill_at") and len(store.records) >= plan["kill_at"][0]:
        with contextlib.suppress(ProcessLookupError):  # dead since it answered: another one, then
            os.kill(record.worker.pid, signal.SIGKILL)
            count("kill")
            del plan["kill_at"][0]
    if len(store.records) == plan.get("signal_at"):
        count("signal")
        os.kill(os.getpid(), plan["signal"])
    return added

forecast = dispatcher.forecast
def poison_first(*known):
    expected = forecast(*known)
    return lambda i: math.inf if i == {POISON} else expected(i)

RunStore.append = append_and_strike
dispatcher.forecast = poison_first
session.Worker = Faulty
stalls.STILL_SECONDS, stalls.LOADS, stalls.DEADLINE_SECONDS, stalls.ANSWERS = 15.0, 1, 20.0, 2
sys.exit(main(["run", *sys.argv[2:]]))
"""


class Chaos:
    """Starts drivers on one run directory after a plan each, and keeps the marks that faults leave."""

    def __init__(self, folder: Path, name: str) -> None:
        self.run, self.marks = folder / name, folder / f"{name}-marks"
        self.marks.mkdir()
        self.data = folder / "problems.jsonl"
        rows = (ROOT / "evals/demo/problems.jsonl").read_text()
        self.data.write_text(rows * (NUMBER // rows.count("\n")))

    def start(self, **plan: Any) -> subprocess.CompletedProcess[str]:
        inline = plan.setdefault("inline", False)
        model = ["--model", "demo", "--data", self.data, "--sampler.kind", "temperature"]
        shape = ["--inline", "--batch-size", SLOTS] if inline else ["--num-workers", 3, "--batch-size", SLOTS // 3]
        flags = [*model, "--num-gpus", 0, "--no-dashboard", "--run-dir", self.run, *shape]
        return python("-c", DRIVER, json.dumps({**plan, "marks": str(self.marks)}), *flags, **BUSY)

    def tear(self) -> None:
        with (self.run / RECORDS).open("ab") as log:
            log.write(TORN)

    def happened(self, name: str) -> int:
        mark = self.marks / name
        return len(mark.read_text().splitlines()) if mark.exists() else 0

    def records(self) -> dict[int, Record]:
        records = read_records(self.run / RECORDS)
        assert len({r.problem_id for r in records}) == len(records), "a problem twice"
        return {r.problem_id: r for r in records}

    def summary(self) -> dict[str, Any]:
        return json.loads((self.run / "summary.json").read_text())

    def events(self, name: EventName) -> list[Event]:
        return events(read_telemetry(self.run / TELEMETRY), name)


def answers(records: dict[int, Record]) -> dict[int, Any]:
    return {i: (r.status, r.token_ids, r.text, r.ended, r.scores) for i, r in records.items()}


LIVES: list[tuple[dict[str, Any], int]] = [
    ({"kill_at": [20, 50], "signal": signal.SIGKILL, "signal_at": 80}, -signal.SIGKILL),
    ({"kill_at": [110], "signal": signal.SIGKILL, "signal_at": 160}, -signal.SIGKILL),
    ({"kill_at": [180], "signal": signal.SIGTERM, "signal_at": 210}, 143),
    ({"kill_at": [240], "signal": signal.SIGINT, "signal_at": 270}, 130),
    ({"kill_at": [280], "full_at": 290}, 2),
]


def test_a_run_through_every_fault_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    chaos, calm = Chaos(tmp_path, "chaos"), Chaos(tmp_path, "calm")
    for plan, code in LIVES:
        done = chaos.start(**plan)
        assert done.returncode == code, done.stderr
        late = len(chaos.records()) - (plan["full_at"] if code == 2 else plan["signal_at"])
        assert 0 <= late <= (SLOTS if code in (143, 130) else 0), done.stderr
        chaos.tear()
    last = chaos.start(hang_after=chaos.happened("poison") + 3)
    assert last.returncode == 3, last.stderr
    assert calm.start(inline=True).returncode == 3

    happened = {name: chaos.happened(name) for name in ("kill", "signal", "full", "poison")}
    assert happened == {"kill": 6, "signal": 4, "full": 1, "poison": happened["poison"]}
    assert happened["poison"] >= 5
    assert (chaos.marks / "hang").exists()
    assert (chaos.marks / "freeze").exists()
    assert len(chaos.events("hang")) == 2
    assert [row.bytes for row in chaos.events("torn_tail")] == [len(TORN)] * len(LIVES)
    assert len(chaos.events("death")) >= happened["poison"] + 1

    records = chaos.records()
    assert sorted(records) == list(range(NUMBER))
    assert answers(records) == answers(calm.records())
    summary, undisturbed = chaos.summary(), calm.summary()
    assert (summary["num_failed"], summary["failed"]) == (1, [[POISON, 0]])
    assert "its worker died 5 times, 2 of them with it alone" in (records[POISON].error or "")
    assert summary["accuracy"] == undisturbed["accuracy"]
    assert 0 < summary["accuracy"]["numeric"]["mean"] < 1
    assert summary["timings"]["num_starts"] == len(LIVES) + 1


RAY_KILLER = """
import sys
from orchestrator.cli import main
from orchestrator.rundir.writing.run_store import RunStore

append = RunStore.append
def append_and_strike(store, record):
    added = append(store, record)
    victim = {20: "raylet", 60: "gcs_server"}.get(len(store.records))
    if victim:
        process = sys.modules["ray"]._private.worker._global_node.all_processes[victim][0].process
        process.kill()
        process.wait()  # one that is dying still takes connections, and Ray then waits for its answer for a minute
    return added

RunStore.append = append_and_strike
sys.exit(main(["run", *sys.argv[1:]]))
"""


def test_a_driver_outlives_the_processes_of_its_own_ray(tmp_path: Path) -> None:
    found = {}
    for name, shape in {"killed": ["--num-workers", 2, "--batch-size", 4], "calm": ["--inline"]}.items():
        model = ["--model", "demo", "--data", "demo", "--limit", 120, "--sampler.kind", "temperature"]
        flags = [*model, "--num-gpus", 0, "--run-dir", tmp_path / name, *shape]
        command = ["-c", RAY_KILLER] if name == "killed" else ["-m", "orchestrator", "run"]
        done = python(*command, *flags, **BUSY)
        assert done.returncode == 0, done.stderr
        found[name] = {r.problem_id: (r.token_ids, r.scores) for r in read_records(tmp_path / name / RECORDS)}
        if name == "killed":
            assert done.stderr.count("Ray's node is gone (one of its own processes died): starting Ray again.") == 2
    assert found["killed"] == found["calm"]
    rows = read_telemetry(tmp_path / "killed" / TELEMETRY)
    assert len(events(rows, "start")) == 1
    assert {row.cause for row in events(rows, "death")} <= {"node", "crash"}
    assert len(events(rows, "ready")) >= 6


NODES = """
import json, os, signal, sys, time
from pathlib import Path

fault, directory = sys.argv[1], Path(sys.argv[2])
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
from orchestrator.cluster import actors, ray_session, stalls
# of the process that starts the head, as those of a local Ray
os.environ |= {f"RAY_health_check_{name}": str(value) for name, value in ray_session.HEALTH_CHECK.items()}
from ray.cluster_utils import Cluster
from evals.config import TaskConfig
from evals.record import Record
from evals.samplers.power import Power
from evals.types import Problem
from orchestrator.settings.config import RunConfig
from orchestrator.workers.pool import Died, Done, Health, Work
from orchestrator.driver.dispatcher import dispatch
from orchestrator.live.progress import Progress
from orchestrator.rundir.telemetry_rows import Event, WorkerState
from orchestrator.rundir.writing.run_store import open_store
from orchestrator.rundir.writing.telemetry_log import Telemetry

class Sleeper:
    def __init__(self, rank, name): self.name = name
    def load(self, config): pass
    def health(self): return Health(WorkerState(time=time.time(), worker=self.name, pid=os.getpid()))
    def solve(self, work):
        time.sleep(0.05)
        return Record(work.problem.problem_id, 0, "ok", "", [], "eos")

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2, "include_dashboard": False})
far = nodes.add_node(num_cpus=1, num_gpus=1)
os.environ["RAY_ADDRESS"] = nodes.address
raylet = far.all_processes["raylet"][0].process.pid
at, seen, answers, frozen = {}, [], set(), []

def strike(pool):
    victim = next(each for each in pool._handles if each.node == far.node_id)
    at["strike"] = time.monotonic()
    stalls.MISSING_SECONDS = 2.0
    for pid in [raylet, *children(raylet)] if fault == "freeze" else [raylet]:
        os.kill(pid, signal.SIGSTOP if fault == "freeze" else signal.SIGKILL)
        frozen.append(pid)

def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

class Watched(actors.RayWorkerPool):
    def wait(self, timeout):
        events = super().wait(timeout)
        for event in events:
            match event:
                case Done():
                    answers.add(event.work.key)
                case Died():
                    seen.append(event)
                    at.setdefault("death", time.monotonic())
                case Event(event="lost"):
                    at.setdefault("said", time.monotonic())
        if "strike" not in at and len(answers) >= 50 and all(each.node and each.calls for each in self._handles):
            strike(self)
        if seen and answers.issuperset(work.key for work in seen[0].unanswered):
            at.setdefault("recovered", time.monotonic())
        return events

works = [Work(Problem(i, "q", "a"), 0, Power(), TaskConfig(), 0) for i in range(100_000)]
store = open_store(directory, {"fingerprint": "f"})
pool = Watched(Sleeper, None, RunConfig(num_gpus=3), 4)
pool.start()
dispatch(pool, store, works, Telemetry(store.telemetry_path), Progress("nodes", len(works)), lambda: len(at) == 4)
pool.close()
for pid in frozen if fault == "freeze" else []:
    os.kill(pid, signal.SIGKILL)
nodes.shutdown()
seconds = {name: round(moment - at["strike"], 1) for name, moment in at.items()}
print(json.dumps({**seconds, "deaths": len(seen), "lost": len(seen[0].unanswered), "cause": seen[0].cause}))
"""


@pytest.mark.parametrize(("fault", "limit"), [("kill", 30.0), ("freeze", 40.0)])
def test_a_lost_node_costs_seconds(fault: str, limit: float, tmp_path: Path) -> None:
    done = python("-c", NODES, fault, tmp_path / "run", timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"node, {fault}: {found}")
    assert (found["deaths"], found["cause"]) == (1, "node")
    assert 1 <= found["lost"] <= 4
    assert found["death"] <= found["recovered"] <= limit
    assert "Worker gpu" in done.stderr
