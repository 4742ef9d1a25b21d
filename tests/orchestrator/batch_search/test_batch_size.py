"""The batch that fits a run: what is tried first, probes in child processes, and how memory runs out."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from evals.types import UserError
from orchestrator.batch_search import batch_size
from orchestrator.batch_search.batch_size import first_batch_size, fit_batch_size, host_memory
from orchestrator.batch_search.probe import Outcome, out_of_memory_reason, probe, probe_work
from orchestrator.inputs.preflight import Inputs
from orchestrator.machine import gpus
from orchestrator.machine.gpus import Gpu
from orchestrator.workers.worker import worker_config
from support.demo_inputs import demo_inputs

MIB = 2**20


def outcome_of(inputs: Inputs, size: int, memory: int | None = None) -> Outcome:
    settings = worker_config(inputs)._replace(slots=size)
    return probe(settings, probe_work(inputs.config, inputs.data.problems, size), memory)


def test_a_batch_holds_the_longest_questions_and_short_answers() -> None:
    inputs = demo_inputs(task={"max_new_tokens": 20})
    works = probe_work(inputs.config, inputs.data.problems, 10)
    lengths = [len(work.problem.question) for work in works[:8]]
    assert lengths == sorted((len(problem.question) for problem in inputs.data.problems), reverse=True)
    assert len({work.key for work in works}) == 10, "the same questions again are other samples"
    assert {work.task.max_new_tokens for work in works} == {20}
    assert {work.task.max_new_tokens for work in probe_work(demo_inputs().config, inputs.data.problems, 2)} == {32}


@pytest.mark.slow  # four processes that import torch
def test_a_probe_answers_a_batch_in_a_child_and_an_overflow_leaves_no_trace() -> None:
    inputs = demo_inputs(sampler={"num_moves": 1})
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


def killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_that_the_system_kills_had_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.batch_search.probe.outcome", killed)
    assert outcome_of(demo_inputs(), 1) == Outcome(None, "the system had no memory left and ended the process")


@pytest.mark.slow
def test_what_is_no_overflow_is_not_taken_for_one(tmp_path: Path) -> None:
    inputs = demo_inputs()
    (tmp_path / "config.json").write_text((Path(inputs.model.folder) / "config.json").read_text())
    with pytest.raises(UserError, match="no safetensors weights"):
        outcome_of(inputs._replace(model=inputs.model._replace(folder=str(tmp_path))), 1)
    with pytest.raises(ValueError, match="1 slots, longest sequence 10000000"):
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
    runs = {f"task.max_new_tokens={n}": demo_inputs(task={"max_new_tokens": n}, batch_size=64) for n in (40, 400)}
    sizes = {name: fit_batch_size(name, one, 3.0, lines.append).config.batch_size for name, one in runs.items()}
    lengths = [one.max_length for one in runs.values()]
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
        fit_batch_size("task.max_new_tokens=40", runs["task.max_new_tokens=40"], None, lines.append)


def test_the_memory_model_proposes(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(gib: float, **settings: Any) -> int:
        present = [Gpu(0, "GPU-1", "a GPU", round(gib * 2**30))] if gib else []
        monkeypatch.setattr(gpus, "visible_gpus", lambda: present)
        return first_batch_size(demo_inputs(1, batch_size="auto", num_gpus=1, **settings), None)

    assert on(80) == 256, "what auto takes at most"
    assert 1 <= on(1.3) < on(1.4) < 256
    assert on(1.4, sampler={"kind": "smc", "num_candidates": 512}) == 1, "whether one fits the probe says"
    on_cpus, longer = demo_inputs(batch_size=64), demo_inputs(batch_size=64, task={"max_new_tokens": 461})
    assert first_batch_size(on_cpus, 8 << 30) == 64
    assert 1 <= first_batch_size(longer, 1 << 30) < first_batch_size(on_cpus, 1 << 30) <= 64
    assert first_batch_size(on_cpus, 0) == 1
    with pytest.raises(UserError, match=r"\(batch_size, auto_batch_size\)"):
        on(0)

    def unseen(*_: object) -> None:
        raise UserError("what it does cannot be seen without weights")

    monkeypatch.setattr("evals.engine.memory_forecast.model_spec", unseen)
    assert first_batch_size(on_cpus, 1) == 64, "a probe says what a forecast cannot"


def test_memory_of_a_worker() -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    half = demo_inputs(num_workers=2, engine={"target_utilisation": 0.5}).config
    assert host_memory(half, None) == int(machine / 4)
    assert host_memory(half, 1.5) == 3 << 29
    on_gpu = demo_inputs(1, num_gpus=1).config
    assert host_memory(on_gpu, None) is None
    with pytest.raises(UserError, match="for CPUs"):
        host_memory(on_gpu, 8.0)
