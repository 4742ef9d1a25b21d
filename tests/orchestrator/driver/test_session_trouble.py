"""What goes wrong around a run ends in one sentence: full disks, unusable places, workers that stand still."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evals.config import TaskConfig
from evals.engine.engine import EngineCounters
from evals.samplers.power import Power
from evals.types import Problem, UserError, WorkersLost
from orchestrator.cli import main
from orchestrator.inputs.problems import load_problems
from orchestrator.rundir.reading.telemetry import read_telemetry
from orchestrator.rundir.telemetry_rows import Event, WorkerState
from orchestrator.rundir.writing.telemetry_log import Telemetry
from orchestrator.settings.config import RunConfig
from orchestrator.workers.pool import Died, Health, Message, Work
from support.command import powersample


def run(directory: Path, *flags: object, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Four demo problems."""
    return powersample("run", *settings(directory, *flags), **variables)


def settings(directory: Path, *flags: object) -> list[str]:
    inputs = ["--model", "demo", "--data", "demo", "--task.max-new-tokens", 160]
    return [str(each) for each in (*inputs, "--limit", 4, "--num-gpus", 0, "--run-dir", directory, *flags)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["sh", "-c", f"mount -t tmpfs -o size=96k none {disk}"], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_run_goes_on_when_a_full_disk_has_room_again(small_disk: Path) -> None:
    flags = [small_disk / "run", "--inline", "--sampler.kind", "greedy", "--limit", 80]
    full = run(*flags)
    assert full.returncode == 2, full.stderr
    last = full.stderr.splitlines()[-1]
    assert last.startswith(
        f"powersample: A record cannot be written to {small_disk}/run/records.jsonl (No space left on"
    )
    assert "Traceback" not in full.stderr
    log = small_disk / "run/records.jsonl"
    kept = log.read_bytes()
    assert kept.endswith(b"\n")
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    again = run(*flags)
    assert again.returncode == 0, again.stderr
    assert log.read_bytes().startswith(kept)
    assert len(log.read_text().splitlines()) == 80


def test_telemetry_that_cannot_be_written_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    telemetry = Telemetry(tmp_path / "telemetry.jsonl")
    telemetry.write(Event(event="start", time=1.0))

    def fail(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "write", fail)
        telemetry.write(Event(event="lost", time=2.0))
    telemetry.write(Event(event="lost", time=3.0))
    telemetry.close()
    expected = f"{tmp_path}/telemetry.jsonl cannot be written (No space left on device): going on without telemetry.\n"
    assert capsys.readouterr().err == expected
    assert [row.time for row in read_telemetry(tmp_path / "telemetry.jsonl")] == [1.0]
    (tmp_path / "directory").mkdir()
    telemetry = Telemetry(tmp_path / "directory")
    telemetry.write(Event(event="lost", time=4.0))
    telemetry.close()
    assert "(Is a directory): going on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"question": "half \\ud800", "answer": "#### 4"}', "unexpected end of hex escape"),
        ("[" * 100_000, "recursion limit exceeded"),
        ('{"question": "q", "answer": "#### 4", "id": ' + "1" * 5000 + "}", "number out of range"),
    ],
)
def test_lines_that_break_a_parser_are_named(line: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "q", "answer": "#### 4"}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"data\.jsonl, line 2: .*{why}.*; rows are "):
        load_problems(str(path))


def test_an_empty_run_directory_is_not_the_current_one() -> None:
    refused = run(Path(), "--run-dir", "")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("powersample: --run-dir= is refused: must not be empty")


def test_an_address_without_ray_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound and not listening: whoever connects is refused
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        refused = run(tmp_path / "run", RAY_ADDRESS=address)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"powersample: No Ray cluster answers at RAY_ADDRESS={address} (")
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_a_search_for_ray_that_finds_none_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**options: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")  # as Ray, unless this machine has another

    import orchestrator.cluster.ray_session  # noqa: F401 - before Ray, as it does itself: it says what Ray reads when it is imported

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("ray.init", fail)
    assert main(["run", *settings(tmp_path / "run")]) == 2
    said = "powersample: No Ray cluster answers at RAY_ADDRESS=auto; start it or unset the variable.\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
@pytest.mark.parametrize("address", ["nohost", "host:port", "127.0.0.1:99999999999"])
def test_what_is_no_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.cluster.ray_session import check_address

    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address}.*unset the variable"):
        check_address()


@pytest.mark.ray
def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = run(tmp_path / "run", HOME=str(tmp_path / "file" / "home"))
    assert refused.returncode == 2, refused.stderr
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("powersample: Ray cannot start ([Errno 20] Not a directory: ")
    assert "HOME" in last
    assert "Traceback" not in refused.stderr


def still_worker() -> type:
    """A class of its own scope, so that Ray sends it by value: it never loads, or loads and never answers."""

    class Still:
        def __init__(self, rank: int, name: str) -> None:
            import threading

            self.name, self.never = name, threading.Event()

        def load(self, config: str) -> None:
            if config == "load":
                self.never.wait()

        def health(self) -> Health:
            return Health(WorkerState(worker=self.name, steps=1))

        def solve(self, work: Work) -> None:
            self.never.wait()

    return Still


@pytest.fixture
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    from orchestrator.cluster.actors import RayWorkerPool

    pool = RayWorkerPool(still_worker(), request.param, RunConfig(num_workers=1, num_gpus=0, dashboard=False), 1)
    pool.start()
    yield pool
    pool.close()


def until(pool: Any, kind: type[Message], event: str = "") -> Any:
    while True:
        for message in pool.wait(0.1):
            if isinstance(message, kind) and event in ("", getattr(message, "event", None)):
                return message


@pytest.mark.serial
@pytest.mark.ray
@pytest.mark.parametrize("pool", ["solve"], indirect=True)
def test_a_worker_that_takes_no_step_counts_as_dead(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    until(pool, Health)  # it says how many slots it has
    work = Work(Problem(0, "q", "#### 4"), 0, Power(), TaskConfig(), 0)
    pool.submit(work)
    monkeypatch.setattr("orchestrator.cluster.stalls.STILL_SECONDS", 0.5)
    event = until(pool, Died)
    assert (event.worker, event.unanswered, event.cause, event.suspected) == ("cpu0", [work], "hang", [work])
    assert "it began to answer a problem and did not get on for" in event.reason
    monkeypatch.setattr("orchestrator.cluster.stalls.STILL_SECONDS", 300.0)
    until(pool, Event, "ready")
    pool._config = "load"
    monkeypatch.setattr("orchestrator.cluster.stalls.LOAD_SECONDS", 0.5)
    pool._down(pool._handles[0], TimeoutError("killed for the test"))
    with pytest.raises(
        WorkersLost, match="cpu0 could not start 3 times: it began to load the model and did not get on"
    ):
        until(pool, Event, "ready")


def test_health_tells_the_steps_by_which_a_worker_is_judged() -> None:
    assert "steps" in EngineCounters._fields
