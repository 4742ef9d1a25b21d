"""Probes in child processes, the batch that fits, and sweeps over values of a setting on the embedded model."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.engine.engine import EngineCounters
from evals.types import Record, UserError
from orchestrator.batch_search import batch_size
from orchestrator.batch_search.batch_size import SweepValue, first_batch_size, fit_batch_size, host_memory
from orchestrator.batch_search.probe import Outcome, out_of_memory_reason, probe, probe_work
from orchestrator.cli import main
from orchestrator.commands.sweep import values_of
from orchestrator.inputs.preflight import Inputs, resolve_inputs
from orchestrator.machine import gpus
from orchestrator.machine.gpus import Gpu
from orchestrator.rundir.reading.telemetry import read_telemetry
from orchestrator.rundir.writing.telemetry_log import Telemetry
from orchestrator.settings.config import RunConfig, resolve
from orchestrator.workers.inline_pool import InlineWorkerPool
from orchestrator.workers.pool import Done, Health
from orchestrator.workers.worker import Worker, worker_config
from support.places import ROOT

DEMO: dict[str, Any] = {"model": "demo", "data": "demo", "mode": "run", "limit": 8}
MIB = 2**20


def found(present: int = 0, **settings: Any) -> Inputs:
    return resolve_inputs(resolve(RunConfig(**DEMO | settings), present))


def outcome_of(inputs: Inputs, size: int, memory: int | None = None) -> Outcome:
    settings = worker_config(inputs)._replace(slots=size)
    return probe(settings, probe_work(inputs.config, inputs.data.problems, size), memory)


def test_a_batch_holds_the_longest_questions_and_short_answers() -> None:
    inputs = found(task={"max_new_tokens": 20})
    works = probe_work(inputs.config, inputs.data.problems, 10)
    lengths = [len(work.problem.question) for work in works[:8]]
    assert lengths == sorted((len(problem.question) for problem in inputs.data.problems), reverse=True)
    assert len({work.key for work in works}) == 10, "the same questions again are other samples"
    assert {work.task.max_new_tokens for work in works} == {20}
    assert {work.task.max_new_tokens for work in probe_work(found().config, inputs.data.problems, 2)} == {32}


@pytest.mark.slow  # four processes that import torch
def test_a_probe_answers_a_batch_in_a_child_and_an_overflow_leaves_no_trace() -> None:
    inputs = found(sampler={"num_moves": 1})
    fits = outcome_of(inputs, 8)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert not fits.reason
    assert fits.peak_bytes is not None
    assert 100 * MIB < fits.peak_bytes < 4096 * MIB
    for memory, size in ((200 * MIB, 1), (1024 * MIB, 400)):  # the model does not fit; keys and values do not
        too_much = outcome_of(inputs, size, memory)
        assert too_much.reason
        assert too_much.peak_bytes is not None
        assert too_much.peak_bytes > memory
        assert too_much.reason.startswith("more than ")
    vast = outcome_of(inputs._replace(max_length=512), 1_000_000)  # no machine has so much
    assert vast.reason
    assert vast.peak_bytes is None
    assert "annot allocate memory" in vast.reason
    assert not outcome_of(inputs, 8, 2048 * MIB).reason, "the parent and the next probe are as before"
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert multiprocessing.active_children() == []


def test_a_child_that_the_system_kills_had_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    start_child = SpawnProcess.start

    def start_and_kill(child: SpawnProcess) -> None:
        start_child(child)
        child.kill()

    monkeypatch.setattr(SpawnProcess, "start", start_and_kill)
    assert outcome_of(found(), 1) == Outcome(None, "the system had no memory left and ended the process")


@pytest.mark.slow
def test_what_is_no_overflow_is_not_taken_for_one(tmp_path: Path) -> None:
    inputs = found()
    (tmp_path / "config.json").write_text((Path(inputs.model.folder) / "config.json").read_text())
    with pytest.raises(UserError, match="no safetensors weights"):
        outcome_of(inputs._replace(model=inputs.model._replace(folder=str(tmp_path))), 1)
    with pytest.raises(RuntimeError, match="ValueError: 1 slots, longest sequence 10000000"):
        outcome_of(inputs._replace(max_length=10_000_000), 1)


def test_how_memory_runs_out() -> None:
    wrapped = UserError("The model cannot be loaded.")
    wrapped.__context__ = OSError(12, "Cannot allocate memory")
    assert out_of_memory_reason(MemoryError())
    assert (
        out_of_memory_reason(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
        is None
    )
    assert out_of_memory_reason(RuntimeError("[enforce fail] Error code 12 (Cannot allocate memory)"))
    assert out_of_memory_reason(wrapped)
    assert out_of_memory_reason(RuntimeError("CUDA error: out of memory"))
    assert out_of_memory_reason(ValueError("no")) is None


def test_each_run_gets_the_largest_batch_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int | None, int, int | None]] = []

    def outcome(settings: Any, works: Any, memory: int | None) -> Outcome:
        asked.append((settings.max_length, settings.slots, memory))
        assert len(works) == settings.slots
        fits = settings.slots * settings.max_length <= 12_000
        return Outcome(7 * MIB if fits else None, "" if fits else "no room")

    monkeypatch.setattr(batch_size, "probe", outcome)
    lines: list[str] = []
    runs = [
        SweepValue("task.max_new_tokens", str(n), found(task={"max_new_tokens": n}, batch_size=64)) for n in (40, 400)
    ]
    sizes = {one.name: fit_batch_size(one, 3.0, lines.append).inputs.config.batch_size for one in runs}
    lengths = [one.inputs.max_length for one in runs]
    assert lengths[0] * 64 <= 12_000
    assert lengths[1] * 64 > 12_000
    assert sizes["task.max_new_tokens=40"] == 64
    short, long = ([size for length, size, _ in asked if length == each] for each in lengths)
    assert (short, long[:2]) == ([64], [64, 32]), "each is searched alone, from its own estimate"
    assert sizes["task.max_new_tokens=400"] == max(size for size in long if size * lengths[1] <= 12_000)
    assert {memory for *_, memory in asked} == {3 << 30}
    assert "task.max_new_tokens=400: batch size 64: out of memory" in lines
    assert "task.max_new_tokens=400: no room" in lines
    assert lines[-1] == f"task.max_new_tokens=400: using batch size {sizes['task.max_new_tokens=400']}"
    monkeypatch.setattr(batch_size, "probe", lambda *_: Outcome(None, "no room"))
    with pytest.raises(UserError, match=r"No batch size that was tried works for task\.max_new_tokens=40;"):
        fit_batch_size(runs[0], None, lines.append)


def test_on_a_gpu_the_memory_model_proposes(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(gib: float, **settings: Any) -> int:
        present = [Gpu(0, "GPU-1", "a GPU", round(gib * 2**30))] if gib else []
        monkeypatch.setattr(gpus, "visible_gpus", lambda: present)
        return first_batch_size(SweepValue("sampler.alpha", "2", found(1, batch_size="auto", num_gpus=1, **settings)))

    assert on(80) == 256, "what auto takes at most"
    assert 1 <= on(1.3) < on(1.4) < 256
    with pytest.raises(UserError, match="Not even one slot"):
        on(1.4, sampler={"kind": "smc", "num_candidates": 512})
    on_cpus = SweepValue("sampler.alpha", "2", found(batch_size=24))
    assert first_batch_size(on_cpus) == 24, "by the tables, which have none for it"
    with pytest.raises(UserError, match="--no-auto-batch-size"):
        on(0)


def test_memory_of_a_worker() -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    half = found(num_workers=2, engine={"target_utilisation": 0.5}).config
    assert host_memory(half, None) == int(machine / 4)
    assert host_memory(half, 1.5) == 3 << 29
    on_gpu = found(1, num_gpus=1).config
    assert host_memory(on_gpu, None) is None
    with pytest.raises(UserError, match="for CPUs"):
        host_memory(on_gpu, 8.0)


def test_values_and_where_to_start() -> None:
    assert values_of("sampler.alpha=1, 2,4", None) == ("sampler.alpha", ["1", "2", "4"])
    assert values_of("task.num_shots=0,4,8", "4") == ("task.num_shots", ["4", "8"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
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


def test_a_worker_loads_again_with_the_model_that_it_holds() -> None:
    small, large = found(task={"max_new_tokens": 8}), found(task={"max_new_tokens": 24})
    worker = Worker(0, "inline")
    pool = InlineWorkerPool(worker, worker_config(small)._replace(slots=2), 2)
    pool.start()
    model, first = worker._engine.model, probe_work(small.config, small.data.problems, 3)
    before = [worker.begin(work).result().token_ids for work in first]
    pool.reload(worker_config(large)._replace(slots=5), 5)
    assert worker._engine.model is model
    assert (worker.health()["slots"], pool.free_slots(9)) == (5, 5)
    after = [worker.begin(work).result().token_ids for work in probe_work(large.config, large.data.problems, 3)]
    assert max(map(len, before)) <= 8 < max(map(len, after)) <= 24
    pool.reload(worker_config(small)._replace(slots=2), 2)
    assert [worker.begin(work).result().token_ids for work in first] == before
    pool.close()


def test_a_workers_health_has_every_counter_of_its_engine_and_telemetry_keeps_them(tmp_path: Path) -> None:
    inputs = found(task={"max_new_tokens": 8}, sampler={"kind": "greedy"})
    pool = InlineWorkerPool(Worker(0, "inline"), worker_config(inputs)._replace(slots=2), 2)
    pool.start()
    path = tmp_path / "telemetry.jsonl"
    telemetry, works = Telemetry(path), probe_work(inputs.config, inputs.data.problems, 3)
    answers: list[Record] = []
    for rounds in (0, len(works)):
        for work in works[:rounds]:
            pool.submit(work)
        while len(answers) < rounds:
            answers += [event.record for event in pool.wait(10.0) if isinstance(event, Done)]
        pool.request_health()
        for event in pool.wait(0):
            if isinstance(event, Health):
                telemetry.sample(event.worker, event.reading)
    pool.close()
    telemetry.close()
    first, last = ({name: row[name] for name in EngineCounters._fields} for row in read_telemetry(path))
    empty = dict.fromkeys(EngineCounters._fields, 0) | {"slots": 2, "kv_pages": first["kv_pages"]}
    assert first == empty
    assert first["kv_pages"] > 0
    assert last["generated_tokens"] == sum(answer.tokens["generated"] for answer in answers) > 0
    assert last["prefilled_tokens"] == sum(answer.tokens["prefilled"] for answer in answers) > 0
    assert last["generated_tokens"] / 2 <= last["steps"] <= last["generated_tokens"]
    assert last["step_seconds"] > 0


def threads_of(cores: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> int | None:
    """CPU threads of a worker on a machine of so many cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    return worker_config(found(**settings)).num_threads


def test_a_worker_has_its_share_of_the_cores_and_never_more_than_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(1, 1), (2, 1), (3, 1), (4, 1), (64, 1), (1, 4), (7, 4), (8, 4), (64, 4), (64, 32), (64, 33)]
    found = [threads_of(cores, monkeypatch, num_gpus=0, num_workers=workers) for cores, workers in cases]
    assert found == [1, 2, 2, 2, 2, 1, 1, 2, 2, 2, 1]


def test_a_worker_computes_on_the_threads_that_are_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    torch.set_num_threads(3)
    worker = Worker(0, "inline")
    worker.load(worker_config(found())._replace(slots=1))
    worker.close()
    assert torch.get_num_threads() == 1


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
    pids = {(row["worker"], row["pid"]) for row in rows if row["kind"] == "sample"}
    assert len(pids) == len(dict(pids)), "every worker is one process, for all values"
    assert not [row for row in rows if row.get("event") == "death"]
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
