"""Worker pool of a single worker in this process, without Ray (`--inline`)."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from evals.record import Record
from evals.types import WorkersLost
from orchestrator.rundir.telemetry_rows import Event
from orchestrator.workers.pool import Done, Message, Raised, Work


class InlineWorkerPool:
    """Runs one `Worker` in this process, so a crash of the worker ends both. `start` raises what `load` raises."""

    def __init__(self, worker: Any, config: Any, slots: int) -> None:
        self._worker, self._config, self._slots, self._name = worker, config, slots, "inline"
        self._calls: dict[Future[Record], Work] = {}
        self._messages: list[Message] = []
        self._loaded = False

    def reload(self, config: Any, slots: int) -> None:
        self._config, self._slots = config, slots
        self.start()

    def start(self) -> None:
        began = time.monotonic()
        self._worker.load(self._config)
        self._loaded = True
        seconds = time.monotonic() - began
        self._messages.append(Event(event="ready", worker=self._name, seconds=seconds))

    def free_slots(self, unanswered: int) -> int:
        return self._slots - len(self._calls)

    def submit(self, work: Work) -> None:
        try:
            self._calls[self._worker.begin(work)] = work
        except Exception as error:  # noqa: BLE001 - reported as this problem's, as it would come from an actor
            self._messages.append(self._raised(work, error))

    def request_health(self) -> set[str]:
        health = self._worker.health()
        self._slots = self._slots if health.state.slots is None else health.state.slots
        self._messages.append(health)
        return {self._name}

    def wait(self, timeout: float) -> list[Message]:
        """As `WorkerPool.wait`. Raises WorkersLost if the engine has failed: this pool has no replacement.

        Answers from before the failure are returned first. What failed with the engine is no problem's fault, so it
        makes no `Raised` event and stays owed.
        """
        messages, self._messages = self._messages, []
        for call in wait(self._calls, 0 if messages else timeout, return_when=FIRST_COMPLETED).done:
            work, error = self._calls.pop(call), call.exception()
            messages.append(Done(self._name, work, call.result()) if error is None else self._raised(work, error))
        if (failure := self._worker.failure()) is None:
            return messages
        if answered := [message for message in messages if isinstance(message, Done)]:
            return list(answered)
        raise WorkersLost(f"the engine has failed: {failure}") from failure

    def close(self) -> None:
        if self._loaded:
            self._worker.close()

    def _raised(self, work: Work, error: BaseException) -> Raised:
        return Raised(self._name, work, f"{type(error).__name__}: {error}")
