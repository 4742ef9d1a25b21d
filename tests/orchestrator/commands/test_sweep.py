"""`powersample sweep`: its values, what is refused, and whole sweeps on the embedded model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.summary import Estimate
from orchestrator.cli import main
from orchestrator.commands.sweep import grid_of
from orchestrator.driver import session
from orchestrator.driver.open_runs import PreparedRun
from orchestrator.machine import gpus
from orchestrator.report.grid import Cell, grid_figure, grid_table
from orchestrator.report.plotting import svg
from orchestrator.rundir.reading.telemetry import events, read_telemetry
from orchestrator.rundir.telemetry_rows import WorkerState
from support.command import in_process
from support.places import ROOT


def test_values_and_where_to_start() -> None:
    assert grid_of(["sampler.alpha=1, 2,4"], None) == [{"sampler.alpha": value} for value in "124"]
    assert grid_of(["task.num_shots=0,4,8"], "4") == [{"task.num_shots": "4"}, {"task.num_shots": "8"}]
    stops = grid_of(['task.stop=["a","b"],["c, d"],[]'], None)
    assert [json.loads(one["task.stop"]) for one in stops] == [["a", "b"], ["c, d"], []]
    assert grid_of(['task.template="a, {q}","{q}?"'], None) == [{"task.template": one} for one in ("a, {q}", "{q}?")]
    assert grid_of(['task.chat_template_args={"a": 1, "b": 2}, {}'], None)[0] == {
        "task.chat_template_args": '{"a": 1, "b": 2}'
    }
    grid = grid_of(["sampler.alpha=1,2,4", "sampler.num_moves=5,6"], "2")
    assert [tuple(one.values()) for one in grid] == [("2", "5"), ("2", "6"), ("4", "5"), ("4", "6")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--knob", "sampler.alpha=1,2", "--mode", "demo"),
            "sweep: mode demo has four runs of its own; leave it out (",
        ),
        (
            ("--knob", "sampler.alpha=1,2", "--memory-limit", "2", "--no-auto-batch-size"),
            "none is searched for here; leave it out (--memory-limit, --auto-batch-size)",
        ),
        (("--knob", "sampler.alpha=1,2", "--memory-limit", "2", "--no-use-batched"), "memory_limit bounds the search"),
        (
            ("--knob", "task.preset=gsm8k,math500", "--model", "demo"),
            "task.preset=gsm8k and task.preset=math500 are of different problems",
        ),
        (("--knob", "task.name=gsm8k,math", "--model", "demo", "--data", "demo"), "are of different problems"),
        (("--knob", "sampler.alpha=1,2,1.0"), "sampler.alpha=1 and sampler.alpha=1.0 are the same run; leave one out."),
        (
            ("--knob", "task.train_data=a.jsonl,b.jsonl"),
            "task.train_data=a.jsonl and task.train_data=b.jsonl are the same run",
        ),
        ((), "--knob is missing and names no setting"),
        (("--knob",), "--knob needs a value: a setting of sampler or task, and its values"),
        (("--knob", "sampler.alhpa=1,2"), "did you mean sampler.alpha?"),
        (("--knob", "engine.prefetch=1,2"), "names no setting of sampler or task"),
        (("--knob", "sampler.alpha"), "needs values that differ"),
        (("--knob", "sampler.alpha=1,1"), "needs values that differ"),
        (("--knob", "sampler.alpha=1,0"), "--sampler.alpha=0 is refused; allowed: a number from 1"),
        (("--knob", "sampler.alpha=1,2", "--start-from", "3"), "--start-from 3 is none of the values 1,2"),
        (("--knob", "sampler.replay=off,of"), "--sampler.replay=of is refused; allowed: true or false"),
        (("--knob", "sampler.alpha=1,2", "--memory-limit", "-1"), "--memory-limit: '-1' is not a number of GiB"),
        (("--knob", "sampler.alpha=1,2", "--bath-size", "3"), "did you mean --batch-size?"),
        (("--knob", "sampler.alpha=1,2", "--knob", "sampler.alpha=4"), "--knob sampler.alpha is given twice; list all"),
        (("--knob", "sampler.alpha=1,2", "--knob", "task.num_shots=0,4", "--start-from", "4"), "of the values 1,2"),
        (("--knob", "task.num_shots=0,4", "--knob", "sampler.alhpa=1"), "did you mean sampler.alpha?"),
        (("--knob", "task.num_shots=0,4", "--knob", "sampler.alpha=1,0"), "--sampler.alpha=0 is refused; allowed: a"),
        (("--knob", "sampler.kind=power,greedy", "--knob", "sampler.alpha=1,2"), "kind greedy does not read alpha"),
        (
            ("--knob", "sampler.alpha=1,2", "--sampler.alpha=3"),
            "leave one out (--sampler.alpha or POWERSAMPLE_SAMPLER_",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    options: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [])
    assert main(["sweep", *options]) == 2
    refused = capsys.readouterr().err
    assert words in refused
    assert refused.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_lists_have_directories_of_their_own_and_what_changes_no_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    prepared: list[PreparedRun] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "carry_out", lambda _, runs, *__: prepared.extend(runs) or 0)
    options = ["--knob", 'task.stop=["a:","b"],["a;","b"],[]', "--knob", "sampler.kind=greedy,power", "--inline"]
    options += ["--model", "demo", "--data", "demo", "--limit", 1, "--num-gpus", 0, "--engine.prefetch", 2]
    options += ["--engine.target-utilisation", 0.5, "--num-workers", 3, "--no-auto-batch-size"]
    assert in_process("sweep", *options) == 0
    stops = [one.config.task.stop for one in prepared]
    assert stops == [("a:", "b"), ("a:", "b"), ("a;", "b"), ("a;", "b"), (), ()]
    assert len({one.directory for one in prepared}) == 6
    assert capsys.readouterr().err == (
        "Without effect here: --num-workers (there is one per GPU, or one inline), --engine.target-utilisation (no GPU "
        "is used).\n"
    )


def test_several_knobs_make_a_grid_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--knob", "sampler.temperature=0.5,1", "--knob", "task.max_new_tokens=24,40,60"]
    options += ["--model", "demo", "--data", "demo", "--limit", 3, "--sampler.kind", "temperature", "--inline"]
    options += ["--num-gpus", 0, "--no-auto-batch-size"]
    assert in_process("sweep", *options) == 0
    shown = capsys.readouterr().out
    (root,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"gsm8k_temperature-temperature-max_new_tokens-[0-9a-f]{8}", root.name)
    content = json.loads((root / "sweep.json").read_text())
    assert content["knobs"] == ["sampler.temperature", "task.max_new_tokens"]
    assert [tuple(one["configuration"].values()) for one in content["summary"]] == [
        (temperature, tokens) for temperature in (0.5, 1.0) for tokens in (24, 40, 60)
    ]
    assert [Path(one["run"]).name for one in content["summary"]][:2] == [
        "temperature=0.5_max_new_tokens=24", "temperature=0.5_max_new_tokens=40"
    ]  # fmt: skip
    table = next(part for part in shown.split("\n\n") if "| sampler.temperature | max_new_tokens 24 |" in part)
    assert table.strip() in (root / "sweep.md").read_text()
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()]
    assert head == ["sampler.temperature", *(f"max_new_tokens {tokens}" for tokens in (24, 40, 60))]
    assert [row[0] for row in rows] == ["0.5", "1"]
    scores = [f"{100 * one['accuracy']:.1f} " for one in content["summary"]]
    assert all(cell.startswith(score) for cell, score in zip([*rows[0][1:], *rows[1][1:]], scores, strict=True))
    picture = (root / "sweep.svg").read_text()
    assert all(f"max_new_tokens {tokens}" in picture for tokens in (24, 40, 60))
    assert (root / "sweep.png").read_bytes().startswith(b"\x89PNG")
    log = root / "temperature=1_max_new_tokens=40/records.jsonl"
    first, *others = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first)
    assert in_process("sweep", *options) == 0
    said = capsys.readouterr().err
    assert "temperature=1_max_new_tokens=40: 1 of 3 answers are there, 2 are owed" in said
    assert said.count("3 of 3 answers are there, 0 are owed") == 5
    assert log.read_bytes().startswith(first)
    texts = [
        {json.loads(line)["text"] for line in lines} for lines in (log.read_bytes().splitlines(), [first, *others])
    ]
    assert texts[0] == texts[1]


def test_values_that_are_no_numbers_stand_side_by_side(tmp_path: Path) -> None:
    cells = [
        Cell({"sampler.kind": kind, "task.num_shots": shots, "sampler.top_k": k}, score)
        for kind in ("greedy", "temperature")
        for shots, k in (("0", "1"), ("4", "1"))
        for score in [Estimate(0.5, 0.1, (0.3, 0.7), "wilson", 10)]
    ]
    table = grid_table(cells[:3], "math")
    assert table.head == ["sampler.kind", "num_shots 0, top_k 1", "num_shots 4, top_k 1"]
    assert table.rows == [["greedy", "50.0 ± 10.0", "50.0 ± 10.0"], ["temperature", "50.0 ± 10.0", "-"]]
    picture = svg(grid_figure(cells, "math"), "title")
    assert all(words in picture for words in (">greedy<", ">temperature<", "num_shots 4, top_k 1", "% right (math)"))


def swept(place: Path, *options: object) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("POWERSAMPLE_", "RAY_"))}
    command = ["sweep", "--knob", "task.max_new_tokens=24,60", "--model", "demo", "--data", "demo", "--limit", 4]
    command += ["--sampler.num-moves", 1, "--num-gpus", 0, *options]
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *map(str, command)],
        cwd=place,
        env=clean | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("pool", [("--inline",), ("--num-workers", 2, "--no-dashboard")], ids=["inline", "actors"])
def test_a_sweep_evaluates_every_value_and_goes_on_where_it_was_stopped(
    pool: tuple[object, ...], tmp_path: Path
) -> None:
    done = swept(tmp_path, "--batch-size", 6, *pool)
    assert done.returncode == 0, done.stderr
    assert "task.max_new_tokens=24: estimated batch size 6, limit 6" in done.stderr
    assert "task.max_new_tokens=60: using batch size 6" in done.stderr
    (root,) = (tmp_path / "runs").iterdir()
    summary = json.loads((root / "sweep.json").read_text())
    assert summary["knob"] == "task.max_new_tokens"
    for row, tokens in zip(summary["summary"], (24, 60), strict=True):
        assert row["configuration"] == {"task.max_new_tokens": tokens}
        assert row["batch_size_used"] == 6
        assert 0 <= row["accuracy"] <= 1
        assert row["num_failed"] == 0
        records = [json.loads(line) for line in (tmp_path / row["run"] / "records.jsonl").read_text().splitlines()]
        assert len(records) == 4
        assert max(len(record["token_ids"]) for record in records) <= tokens
    assert max(len(record["token_ids"]) for record in records) > 24
    rows = [row for log in sorted(root.glob("*/telemetry.jsonl")) for row in read_telemetry(log)]
    pids = {(row.worker, row.pid) for row in rows if isinstance(row, WorkerState)}
    assert len(pids) == len(dict(pids)), "every worker is one process, for all values"
    assert not events(rows, "death")
    assert " methods on " in (root / "report.md").read_text()

    log = tmp_path / summary["summary"][1]["run"] / "records.jsonl"
    kept = log.read_text().splitlines(keepends=True)
    log.write_text("".join(kept[:1]))
    again = swept(tmp_path, "--batch-size", 3, "--no-auto-batch-size", *pool)
    assert again.returncode == 0, again.stderr
    assert "max_new_tokens=24: 4 of 4 answers are there" in again.stderr
    assert "max_new_tokens=60: 1 of 4 answers are there, 3 are owed" in again.stderr
    assert "estimated" not in again.stderr
    texts = [
        {(r["problem_id"], r["text"]) for r in map(json.loads, lines)} for lines in (kept, log.read_text().splitlines())
    ]
    assert texts[0] == texts[1], "other batches, the same answers"
    complete = swept(tmp_path, "--start-from", 60, *pool)
    assert complete.returncode == 0, complete.stderr
    assert "The run is complete already" in complete.stderr
    assert "estimated" not in complete.stderr
    assert len(json.loads((root / "sweep.json").read_text())["summary"]) == 1
