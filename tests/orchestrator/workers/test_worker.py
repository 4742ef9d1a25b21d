"""The process that owns a device: its threads, its health, and another load with the model that it holds."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.engine.engine import EngineCounters
from evals.record import Record
from evals.samplers.power import Power
from orchestrator.batch_search.probe import probe_work
from orchestrator.inputs.preflight import Inputs
from orchestrator.rundir.reading.telemetry import read_telemetry
from orchestrator.rundir.writing.telemetry_log import Telemetry
from orchestrator.workers.inline_pool import InlineWorkerPool
from orchestrator.workers.pool import Done, Health, Message, Work
from orchestrator.workers.worker import MOST_CANCELLED, Worker, worker_config
from support.demo_inputs import demo_inputs


def test_a_worker_loads_again_with_the_model_that_it_holds() -> None:
    small, large = demo_inputs(task={"max_new_tokens": 8}), demo_inputs(task={"max_new_tokens": 24})
    worker = Worker(0, "inline")
    pool = InlineWorkerPool(worker, worker_config(small)._replace(slots=2), 2)
    pool.start()
    model, first = worker._engine.model, probe_work(small.config, small.data.problems, 3)
    before = [worker.begin(work).result().token_ids for work in first]
    pool.reload(worker_config(large)._replace(slots=5), 5)
    assert worker._engine.model is model
    assert (worker.health().state.slots, pool.free_slots(9)) == (5, 5)
    after = [worker.begin(work).result().token_ids for work in probe_work(large.config, large.data.problems, 3)]
    assert max(map(len, before)) <= 8 < max(map(len, after)) <= 24
    pool.reload(worker_config(small)._replace(slots=2), 2)
    assert [worker.begin(work).result().token_ids for work in first] == before
    pool.close()


def test_a_workers_health_has_every_counter_of_its_engine_and_telemetry_keeps_them(tmp_path: Path) -> None:
    inputs = demo_inputs(task={"max_new_tokens": 8}, sampler={"kind": "greedy"})
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
                telemetry.write_state(event.state)
    pool.close()
    telemetry.close()
    first, last = ({name: getattr(row, name) for name in EngineCounters._fields} for row in read_telemetry(path))
    empty = dict.fromkeys(EngineCounters._fields, 0) | {"slots": 2, "kv_pages": first["kv_pages"]}
    assert first == empty
    assert first["kv_pages"] > 0
    assert last["generated_tokens"] == sum(answer.tokens.generated or 0 for answer in answers) > 0
    assert last["prefilled_tokens"] == sum(answer.tokens.prefilled or 0 for answer in answers) > 0
    assert last["generated_tokens"] / 2 <= last["steps"] <= last["generated_tokens"]
    assert last["step_seconds"] > 0


def threads_of(cores: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> int | None:
    """CPU threads of a worker on a machine of so many cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    return worker_config(demo_inputs(**settings)).num_threads


def test_a_worker_has_its_share_of_the_cores_and_never_more_than_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(1, 1), (2, 1), (3, 1), (4, 1), (64, 1), (1, 4), (7, 4), (8, 4), (64, 4), (64, 32), (64, 33)]
    found = [threads_of(cores, monkeypatch, num_gpus=0, num_workers=workers) for cores, workers in cases]
    assert found == [1, 2, 2, 2, 2, 1, 1, 2, 2, 2, 1]


def test_a_worker_computes_on_the_threads_that_are_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    torch.set_num_threads(3)
    worker = Worker(0, "inline")
    worker.load(worker_config(demo_inputs())._replace(slots=1))
    worker.close()
    assert torch.get_num_threads() == 1


def endless(inputs: Inputs, number: int) -> list[Work]:
    """Work that ends by being cancelled alone."""
    sampler = Power(num_moves=100_000)
    return [
        Work(problem, 0, sampler, inputs.config.task, 0, serial=1000 + problem.problem_id, call=1 + problem.problem_id)
        for problem in inputs.data.problems[:number]
    ]


def test_a_pool_gives_up_cancelled_work_and_its_slots_and_says_nothing_of_it() -> None:
    inputs = demo_inputs(task={"max_new_tokens": 16})
    pool = InlineWorkerPool(worker := Worker(0, "inline"), worker_config(inputs)._replace(slots=8), 8)
    pool.start()
    pool.wait(0)
    works, kept = endless(inputs, 8), probe_work(inputs.config, inputs.data.problems, 1)
    assert pool.free_slots(9) == 9  # one may wait in the engine
    for work in works:
        pool.submit(work)
    for work in works:
        pool.cancel(work)
    assert pool.free_slots(9) == 9
    pool.submit(kept[0])
    said: list[Message] = []
    while not said:
        said += pool.wait(60)
    pool.request_health()
    [done, health] = [*said, *pool.wait(0)]
    assert isinstance(done, Done)
    assert done.work is kept[0]
    assert isinstance(health, Health)
    assert (health.state.cancelled_chains, health.state.kv_pages_used, health.state.active_slots) == (8, 0, 0)
    pool.close()
    assert worker.failure() is None


def test_a_call_of_an_actor_is_cancelled_whether_it_has_begun_or_not() -> None:
    """Calls of different concurrency groups overtake each other, so that a cancel may come first."""
    inputs = demo_inputs(task={"max_new_tokens": 16})
    worker = Worker(0, "cpu0")
    worker.load(worker_config(inputs)._replace(slots=4))
    [early, late, other] = endless(inputs, 3)
    worker.cancel(early.call)
    assert worker.solve(early) is None
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(worker.solve, late)
        while late.call not in worker._under_way:
            worker.health()
        worker.cancel(late.call)
        assert answer.result(60) is None
        again = late._replace(serial=7, call=99, sampler=Power(num_moves=1))  # the same key, asked once more
        assert isinstance(worker.solve(again), Record)
    for _ in range(MOST_CANCELLED + 1):
        worker.cancel(other.call)
    assert len(worker._cancelled) == MOST_CANCELLED
    assert not worker._under_way
    worker.close()
