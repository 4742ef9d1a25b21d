"""Runs that stop and start again: killed with -9 at a given number of records, by signals, complete, or refused."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.record import Record
from evals.types import UserError
from orchestrator.driver import session
from orchestrator.machine import description
from orchestrator.rundir.directory import RECORDS, RUN, TELEMETRY
from orchestrator.rundir.reading.telemetry import events, read_telemetry, timings
from orchestrator.rundir.writing.run_store import open_store
from support.command import python
from support.fake_worker import Answering, sessions
from support.logs import read_records


def by_key(directory: Path) -> dict[tuple[int, int], Record]:
    records = read_records(directory / RECORDS)
    assert len({(r.problem_id, r.sample_index) for r in records}) == len(records), "a key twice"
    return {(r.problem_id, r.sample_index): r for r in records}


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    return sessions(tmp_path, monkeypatch)


KILLED = """
import signal, sys
from pathlib import Path
sys.path.append("tests")
import pytest
from support.fake_worker import Answering, sessions
Answering.sent, Answering.signal_at = signal.SIGKILL, int(sys.argv[2])
sessions(Path(sys.argv[1]), pytest.MonkeyPatch())(run_dir="run", num_samples=2, batch_size=3)
"""


def test_killed_three_times_and_resumed(start: Callable[..., int], tmp_path: Path) -> None:
    assert start(run_dir="calm", num_samples=2) == 0
    counts = []
    for fuse in (1, 6, 8):
        assert python("-c", KILLED, tmp_path, fuse).returncode == -signal.SIGKILL
        with (tmp_path / "run" / RECORDS).open("ab") as log:
            log.write(b'{"problem_id": 3, "sam')
        counts.append(len(by_key(tmp_path / "run")))
    assert counts == sorted(counts)
    assert 0 < counts[-1] < 16
    assert start(run_dir="run", num_samples=2) == 0
    calm, killed = by_key(tmp_path / "calm"), by_key(tmp_path / "run")
    assert killed == calm
    assert len(calm) == 16
    rows = read_telemetry(tmp_path / "run" / TELEMETRY)
    assert timings(rows).num_starts == 4
    assert [row.bytes for row in events(rows, "torn_tail")] == [22] * 3


def test_a_session_reports_and_a_second_start_reprints(
    start: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(run_dir=tmp_path / "run") == 0
    first = capsys.readouterr()
    records = (tmp_path / "run" / RECORDS).read_bytes()
    assert "8 of 8" in first.out
    assert start(run_dir=tmp_path / "run") == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "complete already" in again.err
    assert (tmp_path / "run" / RECORDS).read_bytes() == records
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["num_records"] == 8


def test_the_longest_question_goes_first(start: Callable[..., int], tmp_path: Path) -> None:
    start(run_dir=tmp_path / "run", batch_size=1)
    assert [r.problem_id for r in read_records(tmp_path / "run" / RECORDS)] == list(range(7, -1, -1))


def test_another_configuration_is_refused_and_fresh_starts_beside(start: Callable[..., int], tmp_path: Path) -> None:
    assert start(run_dir=tmp_path / "run") == 0
    with pytest.raises(UserError, match=r"seed: 0 there, 1 now.*fresh\)"):
        start(run_dir=tmp_path / "run", seed=1)
    assert start(run_dir=tmp_path / "run", batch_size=3, use_batched=False) == 0
    assert start(run_dir=tmp_path / "run", seed=1, fresh=True) == 0
    assert len(by_key(tmp_path / "run-2")) == 8


def test_failed_problems_give_exit_code_3(
    start: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answering, "broken", True)
    assert start(run_dir=tmp_path / "run") == 3
    assert [k for k, r in by_key(tmp_path / "run").items() if r.status == "failed"] == [(3, 0)]


def test_the_demo_does_not_spread_into_a_directory_of_other_files(start: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/notes.md").write_text("mine")
    with pytest.raises(UserError, match=r"docs has no run\.json but other files \(notes\.md\)"):
        start(mode="demo", run_dir=tmp_path / "docs")
    assert [path.name for path in (tmp_path / "docs").iterdir()] == ["notes.md"]


def test_the_demo_fills_four_directories_with_one_pool(
    start: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(mode="demo") == 0
    names = ["greedy", "t1", "low", "power"]
    assert all(len(by_key(tmp_path / "runs/demo" / name)) == 8 for name in names)
    out, err = capsys.readouterr()
    image = "![Scores against tokens and settings](accuracy.svg)\n\n"
    assert image not in out
    assert (tmp_path / "runs/demo/report.md").read_text().replace(image, "").partition("\n<!--")[0] == out
    last = err.splitlines()[-1]
    assert last.startswith("Read runs/demo/report.html; the comparison was written there")
    assert last.endswith("into runs/demo/greedy, runs/demo/t1, runs/demo/low, runs/demo/power.")
    (tmp_path / "runs/demo/low" / RECORDS).write_bytes(b"")
    assert start(mode="demo") == 0
    spent = {name: timings(read_telemetry(tmp_path / "runs/demo" / name / TELEMETRY)) for name in names}
    assert [spent[name].num_starts for name in names] == [1, 1, 2, 1]
    assert start(mode="demo", fresh=True) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["demo", "demo-2"]


def test_runs_of_a_demo_share_one_time_that_they_keep(start: Callable[..., int], tmp_path: Path) -> None:
    def times() -> dict[str, str]:
        found = (json.loads(path.read_text()) for path in (tmp_path / "runs/demo").glob("*/run.json"))
        return {run["config"]["name"]: run["provenance"]["prompts_time"] for run in found}

    assert start(mode="demo") == 0
    assert len({*times().values()}) == 1
    for path in (tmp_path / "runs/demo").glob("*/run.json"):
        path.write_text(path.read_text().replace(times()["demo/low"], "2020-02-20T20:20:20+05:45"))
    shutil.rmtree(tmp_path / "runs/demo/low")
    assert start(mode="demo") == 0
    assert times() == dict.fromkeys(("demo/greedy", "demo/t1", "demo/low", "demo/power"), "2020-02-20T20:20:20+05:45")


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_demo_whose_last_directory_is_refused_makes_none_of_the_others(
    start: Callable[..., int], tmp_path: Path
) -> None:
    power = tmp_path / "runs/demo/power"
    assert start(run_dir=power) == 0
    before = files(tmp_path)
    with pytest.raises(UserError, match="demo/power holds another run"):
        start(mode="demo", seed=1, run_dir=tmp_path / "runs/demo")
    store = open_store(power, json.loads((power / RUN).read_text()))
    with pytest.raises(UserError, match="demo/power is being written by"):
        start(mode="demo")
    store.close()
    assert files(tmp_path) == {**before, power / "lock": b""}
    assert [path.name for path in (tmp_path / "runs/demo").iterdir()] == ["power"]


def test_a_refused_start_does_not_block_its_remedy(
    start: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(worker: Answering, config: Any) -> None:
        raise UserError("the model cannot be loaded here")

    with monkeypatch.context() as broken:
        broken.setattr(Answering, "load", refuse)
        with pytest.raises(UserError, match="cannot be loaded"):
            start(run_dir=tmp_path / "run")
    assert start(run_dir=tmp_path / "run", seed=1) == 0
    assert json.loads((tmp_path / "run" / RUN).read_text())["config"]["seed"] == 1
    assert timings(read_telemetry(tmp_path / "run" / TELEMETRY)).num_starts == 1


def test_every_start_says_commit_and_versions(
    start: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for commit in ("a" * 40, "b" * 40):
        described = description.Environment({"torch": commit[:1]}, commit, False, "3.11", "powersample run", {})
        monkeypatch.setattr(session.description, "describe", lambda described=described: described)
        monkeypatch.setattr(Answering, "signal_at", 3 if commit.startswith("a") else None)
        start(run_dir=tmp_path / "run", batch_size=1)
    starts = events(read_telemetry(tmp_path / "run" / TELEMETRY), "start")
    assert [(row.git_commit, row.git_dirty, row.versions) for row in starts] == [
        ("a" * 40, False, {"torch": "a"}),
        ("b" * 40, False, {"torch": "b"}),
    ]


@pytest.mark.parametrize("mode", ["run", "demo"])
def test_a_stopped_fresh_run_goes_on_in_its_directory(
    mode: str,
    start: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert start(run_dir=tmp_path / "run", mode=mode) == 0
    monkeypatch.setattr(Answering, "signal_at", 3)
    capsys.readouterr()
    assert start(run_dir=tmp_path / "run", mode=mode, batch_size=1, fresh=True) == 143
    said = capsys.readouterr().err
    assert f"run_dir={tmp_path / 'run-2'} without fresh" in said
    assert "same command" not in said
    monkeypatch.setattr(Answering, "signal_at", None)
    assert start(run_dir=tmp_path / "run-2", mode=mode) == 0
    assert not (tmp_path / "run-3").exists()


def test_a_signal_stops_the_session_and_says_how_to_go_on(
    start: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Answering, "signal_at", 3)
    assert start(run_dir=tmp_path / "run", batch_size=1) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert re.search(r"Stopped by SIGTERM with 3 of 8 answers in .*; the same command goes on", capsys.readouterr().err)
    monkeypatch.setattr(Answering, "signal_at", None)
    assert start(run_dir=tmp_path / "run") == 0
    assert len(by_key(tmp_path / "run")) == 8
