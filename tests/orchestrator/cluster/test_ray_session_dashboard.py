"""Ray's dashboard in a real browser: job, progress and actors under our names; without the token no access.

With SCREENSHOTS naming a directory the pictures are kept there.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from evals.config import TaskConfig
from evals.record import Record
from evals.samplers.power import Power
from evals.types import Problem
from orchestrator.live.metrics import METRICS
from orchestrator.rundir.telemetry_rows import Event, WorkerState
from orchestrator.settings.config import RunConfig
from orchestrator.workers.pool import Done, Health, Work
from support.chromium import Browser, find_browser

pytestmark = pytest.mark.ray
NUM_WORKERS, NUM_PROBLEMS = 2, 24
JOB = f"powersample demo {NUM_PROBLEMS}x{NUM_WORKERS}"


def fake_worker() -> type:
    """Sent by value; every answer takes a while, so that there is something to see."""

    class Worker:
        def __init__(self, rank: int, name: str) -> None:
            self.rank, self.name = rank, name

        def __repr__(self) -> str:
            return f"{self.name} (rank {self.rank})"

        def load(self, config: str, room: int | None = None) -> int | None: ...

        def health(self) -> Health:
            return Health(WorkerState(time=time.time(), worker=self.name, pid=os.getpid()))

        def solve(self, work: Work) -> Record:
            time.sleep(0.02)
            return Record(work.problem.problem_id, 0, "ok", "", [], "eos")

    return Worker


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterable[str]:
    """Address of the dashboard of a pool that has answered its problems, as it was said."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    from orchestrator.cluster.actors import RayWorkerPool

    pool: Any = RayWorkerPool(fake_worker(), "model", RunConfig(num_workers=NUM_WORKERS, num_gpus=0), 2, JOB)
    pool.start()
    try:
        ready = answered = 0
        owed = [Work(Problem(i, "q", "#### 4"), 0, Power(), TaskConfig(), 0) for i in range(NUM_PROBLEMS)]
        while answered < NUM_PROBLEMS:
            while ready == NUM_WORKERS and owed and pool.free_slots(len(owed)):
                pool.submit(owed.pop())
            for event in pool.wait(1.0):
                ready += isinstance(event, Event) and event.event == "ready"
                answered += isinstance(event, Done)
        said = capsys.readouterr().err
        place = re.search(r"Ray's dashboard: http://(\S+) ", said)
        assert place is not None, said
        yield place[1]
    finally:
        pool.close()


def token() -> str:
    """As the line about the dashboard says it is had."""
    command = [str(Path(sys.executable).with_name("ray")), "get-auth-token"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_what_the_dashboard_shows(dashboard: str, tmp_path: Path) -> None:
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium")
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    browser = Browser(program, tmp_path / "profile", {"Authorization": f"Bearer {token()}"})
    pages = {
        "jobs": ("jobs", [JOB, "RUNNING"]),
        "job": ("jobs/01000000", ["Finished: "]),
        "actors": ("actors", ["cpu0 (rank 0)", "cpu1 (rank 1)", "ALIVE"]),
    }

    async def look() -> dict[str, str]:
        return {
            name: await browser.visit(f"http://{dashboard}/#/{page}", texts, pictures / f"dashboard_{name}.png")
            for name, (page, texts) in pages.items()
        }

    try:
        shown = asyncio.run(look())
    finally:
        browser.close()
    finished = re.search(r"Finished: (\d+)", shown["job"])
    assert finished is not None
    assert int(finished[1]) >= NUM_PROBLEMS, "one call per problem is Ray's own progress"


def test_strangers_are_not_let_in_and_metrics_have_our_names(dashboard: str) -> None:
    import ray

    from orchestrator.cluster.ray_metrics import RayMetrics

    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://{dashboard}/api/version")
    for name, (_, labels, _) in METRICS.items():
        values = dict.fromkeys(labels, "x")
        RayMetrics().emit(name, 3, values)
    page = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    until, missing = time.monotonic() + 30, list(METRICS)
    while missing:
        assert time.monotonic() < until, missing
        time.sleep(0.2)
        with urllib.request.urlopen(page) as answer:
            text = answer.read().decode()
        missing = [
            name for name in METRICS if not re.search(rf"^ray_powersample_{name}{{.*}} 3.0$", text, re.MULTILINE)
        ]
