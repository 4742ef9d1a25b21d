"""A driver killed with -9 at a given number of records, and started again: the same records, none twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evals.types import Record
from orchestrator.store import RECORDS, TELEMETRY, read_records
from orchestrator.telemetry import read_telemetry, timings

ROOT = Path(__file__).parents[1]
NUMBER = 40

DRIVER = """
import os, signal, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from evals.config import SamplerConfig, TaskConfig
from evals.rng import Purpose, uniform
from evals.types import Problem, Record
from orchestrator.driver import Work, drive
from orchestrator.inline import InlineCrew
from orchestrator.progress import Progress
from orchestrator.store import open_store
from orchestrator.telemetry import Telemetry

class Worker:
    def load(self, config):
        self.pool = ThreadPoolExecutor(4)

    def begin(self, work):
        return self.pool.submit(self.answer, work)

    def answer(self, work):
        i = work.problem.problem_id
        u = uniform(work.seed, (i, work.sample_index, 0), 0, Purpose.TOKEN)
        return Record(i, work.sample_index, "ok", f"#### {u}", [int(9 * u)], "eos", {}, {}, {}, {}, {}, {})

    def failure(self):
        return None

    def health(self):
        return {"pid": os.getpid()}

    def close(self):
        self.pool.shutdown()

class Fuse(Progress):
    def add(self, record):
        super().add(record)
        if len(store.records) == fuse:
            os.kill(os.getpid(), signal.SIGKILL)

directory, number, fuse = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
problems = [Problem(i, "q", "#### 4") for i in range(number)]
store = open_store(directory, "f", {"config": {}})
telemetry = Telemetry(store.telemetry_path)
telemetry.event("start")
telemetry.phase("sampling")
if store.cut_bytes:
    telemetry.event("torn_tail", bytes=store.cut_bytes)
crew = InlineCrew(Worker(), None, 4)
crew.start()
owed = [Work(problem, k, SamplerConfig(), TaskConfig(), 0) for problem, k in store.owed(problems, 2)]
drive(crew, store, owed, telemetry, Fuse("run", 2 * number, store.records.values()))
telemetry.phase("end")
crew.close()
"""


def run(directory: Path, fuse: int = -1) -> int:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(directory), str(NUMBER), str(fuse)],
        cwd=ROOT,
        check=False,
        stderr=subprocess.DEVNULL,
    ).returncode


def by_key(directory: Path) -> dict[tuple[int, int], Record]:
    records = read_records(directory / RECORDS)
    assert len({(r.problem_id, r.sample_index) for r in records}) == len(records), "a key twice"
    return {(r.problem_id, r.sample_index): r for r in records}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Record]:
    directory = tmp_path_factory.mktemp("undisturbed")
    assert run(directory) == 0
    return by_key(directory)


def test_killed_three_times_and_resumed(tmp_path: Path, undisturbed: dict[tuple[int, int], Record]) -> None:
    for fuse in (1, 30, 79):
        assert run(tmp_path, fuse) == -9
        assert len(by_key(tmp_path)) == fuse
        with (tmp_path / RECORDS).open("ab") as log:
            log.write(b'{"problem_id": 3, "sam')
    assert run(tmp_path) == 0
    assert by_key(tmp_path) == undisturbed
    assert len(undisturbed) == 2 * NUMBER
    rows = read_telemetry(tmp_path / TELEMETRY)
    assert timings(rows)["num_starts"] == 4
    assert [row["bytes"] for row in rows if row.get("event") == "torn_tail"] == [22] * 3


def test_a_complete_run_owes_nothing(tmp_path: Path, undisturbed: dict[tuple[int, int], Record]) -> None:
    assert run(tmp_path) == 0
    before = (tmp_path / RECORDS).read_bytes()
    assert run(tmp_path) == 0
    assert (tmp_path / RECORDS).read_bytes() == before
    assert by_key(tmp_path) == undisturbed
