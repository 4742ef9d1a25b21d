"""Fake workers without a model, for sessions in this process; a subclass says what is answered."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from evals.record import AnsweredBy, Record, Timings, TokenCounts
from evals.rng import Purpose, RandomKey, uniform
from evals.types import Grade
from orchestrator.driver import session
from orchestrator.inputs import models, preflight, problems
from orchestrator.rundir.telemetry_rows import WorkerState
from orchestrator.settings.config import RunConfig, resolve
from orchestrator.workers.pool import Health, Work


class FakeWorker:
    """Loads nothing, and never fails as a whole."""

    name = "inline"

    def __init__(self, rank: int, name: str) -> None: ...

    def load(self, config: Any) -> None: ...

    def begin(self, work: Work) -> Future[Record]:
        """Answered at once: with the record, or with the error, that `answer` returns for the work."""
        future: Future[Record] = Future()
        found = self.answer(work)
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found)
        return future

    def answer(self, work: Work) -> Record | Exception:
        return AssertionError(f"nobody says what is answered to problem {work.problem.problem_id}")

    def failure(self) -> BaseException | None:
        return None

    def health(self) -> Health:
        return Health(WorkerState(time=time.time(), worker=self.name, rank=0, pid=os.getpid()))

    def close(self) -> None: ...


def install(worker: type[FakeWorker], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have sessions use it, whatever the model; returns a model folder below `folder` for them to name."""
    monkeypatch.setattr(session, "Worker", worker)
    monkeypatch.setattr(preflight, "check_model", lambda *_: preflight.CheckedModel(100, "", False))
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    return model


class Answering(FakeWorker):
    """Answers from random keys; problem 3 raises while `broken`, and a signal is sent at an answer."""

    broken = False
    signal_at: int | None = None
    sent = signal.SIGTERM

    def __init__(self, rank: int, name: str) -> None:
        self.answers = 0

    def answer(self, work: Work) -> Record | Exception:
        i = work.problem.problem_id
        if self.broken and i == 3:
            return ValueError("cannot")
        self.answers += 1
        if self.answers == self.signal_at:
            os.kill(os.getpid(), self.sent)
        u = uniform(RandomKey(work.seed, i, work.sample_index), 0, Purpose.TOKEN)
        grade = Grade(u < 0.5, "4")
        return Record(
            problem_id=i,
            sample_index=work.sample_index,
            status="ok",
            text=f"{work.sampler.kind} #### 4",
            token_ids=[int(9 * u)],
            ended="eos",
            scores=dict.fromkeys(("strict", "flexible", "numeric"), grade),
            timings=Timings(1.0, 2.0, 1.0),
            tokens=TokenCounts(1, 1, 1, 1),
            worker=AnsweredBy(rank=0),
        )


def sessions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs sessions on eight problems in `folder` with a fake worker, model and check of both."""
    model, data = install(Answering, folder, monkeypatch), folder / "data.jsonl"
    data.write_text("".join(json.dumps({"question": "q" * i, "answer": "#### 4"}) + "\n" for i in range(1, 9)))
    monkeypatch.chdir(folder)
    for module in (models, problems):
        monkeypatch.setattr(module, "DEMO_FOLDER", folder)
    monkeypatch.setattr(problems, "DEMO_PROBLEMS", "data.jsonl")

    def run(**settings: Any) -> int:
        inputs = {} if settings.get("mode") == "demo" else {"model": str(model), "data": str(data)}
        return session.run(resolve(RunConfig(inline=True, num_gpus=0, **inputs, **settings), 0))

    return run
