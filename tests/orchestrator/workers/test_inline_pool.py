"""The pool of one worker in this process: what its calls say, what cancelled ones do not, and how long it waits."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from evals.config import TaskConfig
from evals.record import Record
from evals.samplers.power import Power
from evals.types import Problem, WorkersLost
from orchestrator.batch_search.probe import probe_work
from orchestrator.workers.inline_pool import InlineWorkerPool
from orchestrator.workers.pool import Done, Health, Message, Raised, Work
from orchestrator.workers.worker import Worker, worker_config
from support.demo_inputs import demo_inputs
from support.fake_worker import FakeWorker

LONG = 60.0
"""Seconds that a wait would take which misses an answer."""


class Asked(FakeWorker):
    """Answers when a test says so, and refuses problem 9."""

    broken: BaseException | None = None

    def __init__(self) -> None:
        self.answers: list[Future[Record]] = []

    def begin(self, work: Work) -> Future[Record]:
        if work.problem.problem_id == 9:
            raise ValueError("too long")
        self.answers.append(Future())
        return self.answers[-1]

    def failure(self) -> BaseException | None:
        return self.broken


def work(problem_id: int) -> Work:
    return Work(Problem(problem_id, "q", "#### 4"), 0, Power(), TaskConfig(), 0)


def record(of: Work) -> Record:
    return Record(*of.key, "ok", "", [], "eos")


def started(worker: Any, slots: int = 4) -> InlineWorkerPool:
    pool = InlineWorkerPool(worker, "settings", slots)
    pool.start()
    assert [getattr(message, "event", "") for message in pool.wait(0)] == ["ready"]
    return pool


def test_cancelled_work_frees_its_slot_and_is_not_heard_of() -> None:
    worker = Asked()
    pool = started(worker)
    running, ended, refused, equal = work(0), work(1), work(9), work(0)
    for each in (running, ended, refused, equal):
        pool.submit(each)
    worker.answers[1].set_result(record(ended))
    for each in (running, ended, refused, running):
        pool.cancel(each)
    assert pool.free_slots(9) == 3
    assert [answer.cancelled() for answer in worker.answers] == [True, False, False]
    assert pool.wait(0) == []
    worker.answers[2].set_result(record(equal))
    [message] = pool.wait(LONG)
    assert isinstance(message, Done)
    assert message.work is equal
    assert pool.free_slots(9) == 4


def test_a_wait_takes_all_that_is_there_and_ends_with_the_first_answer() -> None:
    worker = Asked()
    pool = started(worker)
    works = [work(number) for number in range(4)]
    for each in (*works, work(9)):
        pool.submit(each)
    for number in (2, 0):
        worker.answers[number].set_result(record(works[number]))
    first, *others = pool.wait(LONG)
    assert isinstance(first, Raised)
    assert [message.work for message in others if isinstance(message, Done)] == [works[2], works[0]]
    thread = threading.Timer(0.05, lambda: worker.answers[1].set_exception(RuntimeError("lost")))
    thread.start()
    assert pool.wait(LONG) == [Raised("inline", works[1], "RuntimeError: lost")]
    assert pool.wait(0.01) == []


def test_answers_from_before_a_failure_of_the_engine_come_first() -> None:
    worker = Asked()
    pool = started(worker)
    works = [work(number) for number in range(3)]
    for each in works:
        pool.submit(each)
    pool.cancel(works[2])
    worker.answers[0].set_result(record(works[0]))
    worker.broken = ValueError("out of memory")
    worker.answers[1].set_exception(worker.broken)
    assert pool.wait(LONG) == [Done("inline", works[0], record(works[0]))]
    with pytest.raises(WorkersLost, match="the engine has failed: out of memory"):
        pool.wait(0)


def test_a_cancel_reaches_the_engine_and_the_workers_health_counts_it() -> None:
    inputs = demo_inputs(task={"max_new_tokens": 40}, sampler={"num_moves": 100_000})
    pool = InlineWorkerPool(Worker(0, "inline"), worker_config(inputs)._replace(slots=2), 2)
    pool.start()
    works = probe_work(inputs.config, inputs.data.problems, 2)
    for each in works:
        pool.submit(each)
    pool.cancel(works[0])

    def health() -> Health:
        pool.request_health()
        seen: list[Message] = pool.wait(0)
        assert not any(isinstance(message, Done | Raised) for message in seen)
        return next(message for message in seen if isinstance(message, Health))

    assert health().state.cancelled_chains == 1
    pool.cancel(works[1])
    while (state := health().state).active_slots:
        pass
    assert (state.kv_pages_used, state.cancelled_chains, pool.free_slots(9)) == (0, 2, 2)
    pool.close()
