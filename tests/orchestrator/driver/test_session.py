"""What a session says while it waits for workers, and what it does when it is asked to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.driver import session
from orchestrator.driver.open_runs import OpenRun
from orchestrator.driver.session import wait_for_a_worker
from orchestrator.driver.signals import Stop
from orchestrator.rundir.extents import Extent
from orchestrator.rundir.reading.telemetry import events, read_telemetry
from orchestrator.rundir.telemetry_rows import Event
from orchestrator.rundir.writing.run_store import open_store
from orchestrator.rundir.writing.telemetry_log import Telemetry
from orchestrator.settings.config import RunConfig, resolve
from orchestrator.workers.pool import Message
from support.places import ROOT

BLOCKED = """
import signal, sys
from orchestrator.driver import signals as stops
stops.ONE_STOP_SECONDS = float(sys.argv[1])
stop = stops.Stop()
stop.install()
for number in sys.argv[2:]:
    signal.raise_signal(int(number))
    print(bool(stop), flush=True)
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_request_ends_a_process_that_is_blocked(second: signal.Signals) -> None:
    command = [sys.executable, "-c", BLOCKED, "0", str(int(signal.SIGINT)), str(int(second))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-second, "True\n"), done.stderr


def test_one_request_that_arrives_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.driver.signals.ONE_STOP_SECONDS", 1000.0)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = Stop()
    assert not stop
    stop.install()
    try:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # what a start script adds to a terminal's Ctrl-C
        assert stop.number == signal.SIGINT
    finally:
        stop.restore()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


class Pending:
    """A pool whose only worker is ready at the third look."""

    def __init__(self) -> None:
        self.looks = 0

    def start(self) -> None: ...
    def free_slots(self, unanswered: int) -> int:
        return 0

    def reload(self, config: Any, slots: int) -> None: ...
    def submit(self, work: Any) -> None: ...
    def cancel(self, work: Any) -> None: ...
    def request_health(self) -> set[str]:
        return set()

    def close(self) -> None: ...

    def wait(self, timeout: float) -> list[Message]:
        self.looks += 1
        return [Event(event="ready", time=5.0, worker="gpu0", seconds=2.5)] if self.looks == 3 else []


@pytest.mark.parametrize(("interval", "lines"), [(0.0, 3), (1000.0, 0)])
def test_what_is_waited_for_is_said(
    interval: float, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "WAITING_SECONDS", interval)
    config = resolve(RunConfig(model="owner/name", data="d.jsonl", num_gpus=4), 4)
    store = open_store(tmp_path, {"fingerprint": "f"})
    telemetry = Telemetry(store.telemetry_path)
    inputs: Any = None
    wait_for_a_worker(
        Pending(), [OpenRun(config, store, telemetry, [], Extent(num_problems=8, num_samples=1), inputs)], Stop()
    )
    telemetry.close()
    store.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    for line in said:
        assert line.startswith("Waiting for 4 workers to load owner/name, 0 s so far; if GPUs are busy, Ray gives")
    assert [row.worker for row in events(read_telemetry(tmp_path / "telemetry.jsonl"), "ready")] == ["gpu0"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_breaks_off_what_it_would_have_to_wait_for(sent: signal.Signals) -> None:
    stop = Stop()
    stop.install()
    try:
        reached = False
        with stop.interruptible():
            signal.raise_signal(sent)
            reached = True
        assert (reached, stop.number) == (False, sent)
        assert signal.getsignal(sent) == stop._handle
    finally:
        stop.restore()


def test_what_ray_answers_to_sigterm_counts_as_a_stop_and_other_exits_do_not() -> None:
    stop = Stop()
    try:
        with stop.interruptible():
            raise SystemExit(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(SystemExit), Stop().interruptible():
            raise SystemExit(7)
    finally:
        stop.restore()
