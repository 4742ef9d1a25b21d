"""Measures what orchestration costs: records per second through Ray into the synced log, and how busy workers are.

    python benchmarks/orchestration.py [--actors 8 64] [--without-ray 128 256 512] [--nodes 8] [--seconds 60]

Rate: eight actors whose engine answers at once with records of 1.5 KB, as many as GSM8K has problems, driven by the
dispatcher itself into a run directory. Efficiency: engines that sleep as long as lognormal answers of GSM8K's mean and
cap would take, in units that make the whole last `--seconds`; their time is compared with the shortest that any
schedule could need, the larger of the longest answer and of all answers spread evenly. From 16 actors on they live on
`--nodes` simulated nodes, each with a raylet of its own on this machine. More workers than this machine holds processes
are simulated `--without-ray`: the driver, its log and the clock are the real ones, the pool is a heap of the moments at
which answers are due, so that what Ray costs per call is missing. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # simulated nodes make none by themselves

from evals.config import TaskConfig
from evals.record import AnsweredBy, Record, Timings, TokenCounts
from evals.samplers.power import Power
from evals.samplers.trace import MoveFigures
from evals.types import Grade, Problem
from orchestrator.cluster.actors import RayWorkerPool
from orchestrator.driver.dispatcher import dispatch
from orchestrator.live.progress import Progress
from orchestrator.rundir.telemetry_rows import WorkerState
from orchestrator.rundir.writing.run_store import open_store
from orchestrator.rundir.writing.telemetry_log import Telemetry
from orchestrator.settings.config import RunConfig
from orchestrator.workers.pool import Done, Health, Message, Work, WorkerPool

MEAN_TOKENS, SIGMA, CAP, CAP_SHARE = 300.0, 0.45, 2048.0, 0.03
QUESTION_SIGMA = 0.5  # how well the length of a question tells that of its answer: known up to this factor (log)
RATE_ACTORS, RATE_SLOTS = 8, 10
SLOTS = 4
ON_NODES = 16  # actors from which on they live on simulated nodes
TOKEN_IDS = list(range(1000, 1150))


class Timing(NamedTuple):
    """Times of one driven run, from the first call to the last record."""

    wall_seconds: float
    driver_cpu_seconds: float


def sleeper() -> type:
    """A worker class of its own scope, so that Ray sends it by value."""

    class Sleeper:
        def __init__(self, rank: int, name: str) -> None:
            self.rank, self.name = rank, name

        def load(self, config: Any) -> None: ...

        def health(self) -> Health:
            return Health(WorkerState(time=time.time(), worker=self.name, pid=os.getpid()))

        def solve(self, work: Work) -> Record:
            seconds = float(work.problem.solution)
            if seconds:
                time.sleep(seconds)
            scores = {name: Grade(True, "4") for name in ("strict", "numeric")}
            began = time.time()
            return Record(
                work.problem.problem_id, 0, "ok", "word " * 100, TOKEN_IDS, "eos", scores, MoveFigures(moves=10),
                Timings(began, began, seconds), tokens=TokenCounts(generated=150), worker=AnsweredBy(self.rank),
            )  # fmt: skip

    return Sleeper


def lengths(number: int, seed: int = 0) -> np.ndarray:
    """[number] answer lengths in tokens: lognormal, a few at the cap."""
    random = np.random.default_rng(seed)
    drawn = np.exp(random.normal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, number))
    drawn[random.random(number) < CAP_SHARE] = CAP
    return np.minimum(drawn, CAP)


def works(seconds: Sequence[float], seed: int = 1) -> list[Work]:
    """Work that takes so many seconds each; the length of a question predicts them only roughly."""
    noise = np.exp(np.random.default_rng(seed).normal(0.0, QUESTION_SIGMA, len(seconds)))
    scale = 200 / max(float(np.mean(seconds)), 1e-9)
    return [
        Work(Problem(i, "q" * max(1, int(each * scale * factor)), str(each)), 0, Power(), TaskConfig(), 0)
        for i, (each, factor) in enumerate(zip(seconds, noise, strict=True))
    ]


@contextmanager
def pool(num_actors: int, slots: int, num_nodes: int) -> Iterator[RayWorkerPool]:
    """A pool whose actors are all ready, on this machine's own Ray or on simulated nodes."""
    nodes = None
    if num_nodes > 1:
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(num_nodes):
            nodes.add_node(num_cpus=-(-num_actors // num_nodes))
        os.environ["RAY_ADDRESS"] = str(nodes.address)
    run = RunConfig(num_workers=num_actors, num_gpus=0, dashboard=False)
    ready = RayWorkerPool(sleeper(), None, run, slots, "powersample benchmark")
    try:
        ready.start()
        said: set[str] = set()
        while len(said) < num_actors:  # a worker can be given work once it has said how many slots it has
            said |= {event.worker for event in ready.wait(0.2) if isinstance(event, Health)}
        yield ready
    finally:
        ready.close()
        os.environ.pop("RAY_ADDRESS", None)
        if nodes is not None:
            nodes.shutdown()


class DueWorkerPool:
    """Simulated workers: a heap of the times at which answers are due, `number` slots in all, no process, no Ray."""

    def __init__(self, number: int) -> None:
        self.number, self.due = number, list[tuple[float, int, Work]]()

    def start(self) -> None: ...

    def close(self) -> None: ...

    def reload(self, config: object, slots: int) -> None: ...

    def free_slots(self, unanswered: int) -> int:
        return self.number - len(self.due)

    def submit(self, work: Work) -> None:
        heapq.heappush(self.due, (time.monotonic() + float(work.problem.solution), work.problem.problem_id, work))

    def cancel(self, work: Work) -> None:
        raise NotImplementedError("a run takes nothing back")

    def request_health(self) -> set[str]:
        return set()

    def wait(self, timeout: float) -> list[Message]:
        time.sleep(min(timeout, max(0.0, self.due[0][0] - time.monotonic())) if self.due else timeout)
        now, events = time.monotonic(), list[Message]()
        while self.due and self.due[0][0] <= now:
            work = heapq.heappop(self.due)[2]
            tokens = TokenCounts(generated=150)
            record = Record(work.problem.problem_id, 0, "ok", "word " * 100, TOKEN_IDS, "eos", tokens=tokens)
            events.append(Done("due", work, record))
        return events


def timed(pool: WorkerPool, owed: Sequence[Work]) -> Timing:
    """Drive `owed` into a new run directory; returns the times."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder), {"fingerprint": "f"})
        telemetry = Telemetry(store.telemetry_path)
        progress = Progress("benchmark", len(owed), out=io.StringIO())
        began, cpu = time.monotonic(), time.process_time()
        dispatch(pool, store, owed, telemetry, progress)
        timing = Timing(time.monotonic() - began, time.process_time() - cpu)
        assert len(store.records) == len(owed)
        telemetry.close()
        store.close()
    return timing


def rate(num_problems: int) -> dict[str, float]:
    """Records per second of a null engine, and what each costs the driver."""
    owed = works([0.0] * num_problems)
    with pool(RATE_ACTORS, RATE_SLOTS, 1) as ready:
        timed(ready, owed[:100])  # connections between driver and actors are made at the first calls
        timing = timed(ready, owed)
    return {
        "records_per_second": num_problems / timing.wall_seconds,
        "driver_cpu_ms_per_record": 1e3 * timing.driver_cpu_seconds / num_problems,
    }


def efficiency(num_actors: int, num_problems: int, seconds: float, num_nodes: int) -> float:
    """Ratio of the shortest possible time to the time taken, with as many problems per slot as eight actors have.

    `num_nodes` 0 measures without Ray.
    """
    tokens = lengths(num_problems * num_actors // 8)
    bound = max(float(tokens.max()), float(tokens.sum()) / (num_actors * SLOTS))
    owed = works(list(tokens * seconds / bound))
    if num_nodes == 0:
        timing = timed(DueWorkerPool(num_actors * SLOTS), owed)
    else:
        with pool(num_actors, SLOTS, num_nodes if num_actors >= ON_NODES else 1) as ready:
            timed(ready, works([0.0] * 10 * num_actors))
            timing = timed(ready, owed)
    kind = "actors" if num_nodes else "workers without Ray"
    print(
        f"{num_actors} {kind} x {SLOTS} slots, {len(tokens):,} answers: {timing.wall_seconds:.2f} s, at best "
        f"{seconds:.2f} s; driver {100 * timing.driver_cpu_seconds / timing.wall_seconds:.0f} % of a core",
        flush=True,
    )
    return seconds / timing.wall_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--actors", type=int, nargs="*", default=[8, 64], help="numbers of actors (%(default)s)")
    parser.add_argument("--without-ray", type=int, nargs="*", default=[], help="numbers of simulated workers (none)")
    parser.add_argument("--nodes", type=int, default=8, help="simulated nodes from 16 actors on (%(default)s)")
    parser.add_argument("--num-problems", type=int, default=1319, help="problems for 8 actors (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the ideal schedule (%(default)s)")
    options = parser.parse_args()
    found: dict[str, Any] = rate(options.num_problems)
    print(
        f"null engine, {RATE_ACTORS} actors x {RATE_SLOTS} slots: {found['records_per_second']:.0f} records/s, "
        f"{found['driver_cpu_ms_per_record']:.2f} ms of the driver's CPU each",
        flush=True,
    )
    found["efficiency"] = {
        actors: efficiency(actors, options.num_problems, options.seconds, options.nodes) for actors in options.actors
    }
    found["efficiency_without_ray"] = {
        workers: efficiency(workers, options.num_problems, options.seconds, 0) for workers in options.without_ray
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
