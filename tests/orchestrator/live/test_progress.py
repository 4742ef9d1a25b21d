"""The progress display: the table on a terminal, and `powersample watch` on files that another process writes."""

from __future__ import annotations

import io
import json
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals.record import encode
from evals.types import UserError
from orchestrator.commands.watch import RunWatcher, watch
from orchestrator.live.progress import MAX_ROWS, Progress
from orchestrator.rundir.reading.telemetry import read_telemetry
from orchestrator.rundir.telemetry_rows import Event, WorkerState
from orchestrator.rundir.writing.ownership import take_lock
from orchestrator.rundir.writing.telemetry_log import Telemetry, rates
from support.made_up import make_record, make_run, on_gpu, refused, said, write


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run of four problems with two answers and two workers, one of which has died."""
    directory = write(tmp_path / "mine", make_run(name="mine"), [make_record(0), make_record(1), make_record(1)])
    (directory / "telemetry.jsonl").unlink()
    telemetry = Telemetry(directory / "telemetry.jsonl")
    telemetry.write(Event(event="start", time=1.0))
    telemetry.write(Event(event="phase", time=2.0, name="sampling"))
    for worker in ("gpu0", "gpu10", "gpu2"):
        telemetry.write_state(on_gpu(worker))
    telemetry.write(Event(event="death", time=time.time(), worker="gpu2", reason="killed"))
    telemetry.close()
    with (directory / "lock").open("w") as lock:  # as the driver does
        take_lock(lock.fileno(), directory)
        yield directory


def test_one_frame_has_the_bar_and_a_line_for_each_live_worker(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    state, head, *rows = said(["watch", str(run), "--once"], capsys).splitlines()
    assert state.startswith("mine: 2 of 4, numeric 100.0")
    assert head.split() == ["worker", "slots", "tokens/s", "memory", "device"]
    assert [row.split() for row in rows] == [
        [name, "9", "of", "10", "-", "40.0", "of", "80.0", "GiB", "97%"] for name in ("gpu0", "gpu10")
    ]
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before, "read-only"


def test_watching_follows_the_files_until_the_run_is_complete(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces = [encode(make_record(2))[:20], encode(make_record(2))[20:], encode(make_record(3))]

    def grow(seconds: float) -> None:
        with (run / "records.jsonl").open("ab") as log:
            log.write(pieces.pop(0))

    assert watch(Namespace(run=run, once=False), sleep=grow) == 0
    assert not pieces
    assert "mine: 4 of 4" in capsys.readouterr().out


def test_watching_ends_with_a_run_that_was_stopped_and_says_when_one_is_silent(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (run / "telemetry.jsonl").read_text().splitlines()
    (run / "telemetry.jsonl").write_text("\n".join(json.dumps({**json.loads(row), "time": 7.0}) for row in rows) + "\n")

    def stop(seconds: float) -> None:
        telemetry = Telemetry(run / "telemetry.jsonl")
        telemetry.write(Event(event="stop", time=8.0, signal="SIGTERM"))
        telemetry.close()

    assert watch(Namespace(run=run, once=False), sleep=stop) == 0
    assert "Nothing new for" in capsys.readouterr().err
    assert watch(Namespace(run=run, once=False)) == 0


@pytest.mark.parametrize("once", [True, False])
def test_of_a_run_that_no_process_drives_no_worker_is_shown(
    once: bool, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "lock").unlink()
    assert watch(Namespace(run=run, once=once)) == 0
    shown = "".join(capsys.readouterr())
    assert "mine: 2 of 4" in shown
    assert "the command that started it goes on" in shown
    assert "gpu0" not in shown
    assert "GiB" not in shown


def test_what_cannot_be_watched_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a run directory" in refused(["watch", str(tmp_path / "absent")], capsys)
    assert "the following arguments are required: RUN" in refused(["watch"], capsys)
    assert f"it holds the runs {run}; name one of them" in refused(["watch", str(run.parent)], capsys)
    (run / "records.jsonl").write_bytes(encode(make_record(4)))
    with pytest.raises(UserError, match=r"line 1: not a record \(problem_id is 4, but the run has 0 to 3\)"):
        RunWatcher(run)
    (run / "records.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"records\.jsonl, line 1: not a record"):
        RunWatcher(run)


def test_on_a_terminal_the_table_is_below_one_bar_and_goes_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.live.progress.BAR_SECONDS", 0.0)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((120, 40)))
    out = Terminal()
    progress = Progress("power", 8, (), out)
    for i in range(MAX_ROWS + 4):
        progress.add_row(on_gpu(f"gpu{i}", tokens_per_second=1234.0))
    progress.refresh()
    shown = out.getvalue()
    assert "power:   0%" in shown
    assert shown.count("worker ") == 1
    assert "gpu3 9 of 10 1,234 40.0 of 80.0 GiB 97%" in " ".join(shown.split())
    assert "and 5 more" in shown
    assert f"gpu{MAX_ROWS - 1} " not in shown
    for i in range(MAX_ROWS + 3):
        progress.add_row(Event(event="death", time=6.0, worker=f"gpu{i}"))
    progress.refresh()
    progress.close()
    last = out.getvalue().rpartition("\r")[2]
    assert "gpu" not in last, "the bar alone stays"


def test_rates_are_of_one_process_between_two_samples() -> None:
    first = WorkerState(time=10.0, worker="gpu0", pid=1, generated_tokens=100, idle_seconds=1.0)
    second = WorkerState(time=12.0, worker="gpu0", pid=1, generated_tokens=500, idle_seconds=1.5)
    assert rates(first, second) == {"tokens_per_second": 200.0, "waiting_fraction": 0.25}
    assert rates(first, second.model_copy(update={"pid": 2})) == {}
    assert rates(first, second.model_copy(update={"idle_seconds": None})) == {"tokens_per_second": 200.0}
    assert rates(second, second) == {}


def test_listeners_hear_every_row_also_where_none_can_be_written(tmp_path: Path) -> None:
    heard: list[Any] = []
    telemetry = Telemetry(tmp_path / "missing" / "telemetry.jsonl")
    with telemetry.heard_by(heard.append):
        telemetry.write_state(on_gpu("gpu0"))
        telemetry.write(Event(event="death", time=6.0, worker="gpu0", reason="killed"))
    telemetry.close()
    assert [row.kind for row in heard] == ["sample", "event"]
    assert read_telemetry(tmp_path / "missing" / "telemetry.jsonl") == []


def test_a_gpu_says_what_nvml_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml
    import torch

    from evals.engine.device import DeviceState, device_state

    def refuse(*_: Any) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    said = {
        "nvmlInit": None,
        "nvmlDeviceGetHandleByUUID": "handle",
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=93),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=5 << 30),
        "nvmlDeviceGetTemperature": 61,
    }
    for name, answer in said.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", refuse)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12ab"))
    assert device_state(torch.device("cuda")) == DeviceState(0.93, 5 << 30, None, 61)
    assert device_state(torch.device("cpu")) == DeviceState()
    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert device_state(torch.device("cuda")) == DeviceState()
