"""A worker without a model, for sessions in this process: a subclass says what it answers."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from evals.types import Record
from orchestrator import inputs, session
from orchestrator.crew import Work


class FakeWorker:
    """Loads nothing, and never fails as a whole."""

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

    def health(self) -> dict[str, Any]:
        return {"rank": 0, "pid": os.getpid()}

    def close(self) -> None: ...


def install(worker: type[FakeWorker], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have sessions use it, whatever the model; returns a model folder below `folder` for them to name."""
    monkeypatch.setattr(session, "Worker", worker)
    monkeypatch.setattr(inputs, "check", lambda *_: 100)
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    return model
