"""Worker pool of a single worker in this process, without Ray (`--inline`)."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from evals.record import Record
from evals.types import WorkersLost
from orchestrator.workers.pool import Done, PoolEvent, Raised, Ready, Work


class InlineWorkerPool:
    """Runs one `Worker` in this process, so a crash of the worker ends both. `start` raises what `load` raises."""

    def __init__(self, worker: Any, config: Any, slots: int) -> None:
        self._worker, self._config, self._slots, self._name = worker, config, slots, "inline"
        self._calls: dict[Future[Record], Work] = {}
        self._events: list[PoolEvent] = []
        self._loaded = False

    def reload(self, config: Any, slots: int) -> None:
        self._config, self._slots = config, slots
        self.start()

    def start(self) -> None:
        began = time.monotonic()
        self._worker.load(self._config)
        self._loaded = True
        self._events.append(Ready(self._name, time.monotonic() - began))

    def free_slots(self, unanswered: int) -> int:
        return self._slots - len(self._calls)

    def submit(self, work: Work) -> None:
        try:
            self._calls[self._worker.begin(work)] = work
        except Exception as error:  # noqa: BLE001 - reported as this problem's, as it would come from an actor
            self._events.append(raised_event(self._name, work, error))

    def request_health(self) -> set[str]:
        health = self._worker.health()
        self._slots = self._slots if health.state.slots is None else health.state.slots
        self._events.append(health)
        return {self._name}

    def wait(self, timeout: float) -> list[PoolEvent]:
        """As `WorkerPool.wait`. Raises WorkersLost if the engine has failed: this pool has no replacement.

        Answers from before the failure are returned first. What failed with the engine is no problem's fault, so it
        makes no `Raised` event and stays owed.
        """
        events, self._events = self._events, []
        for call in wait(self._calls, 0 if events else timeout, return_when=FIRST_COMPLETED).done:
            work, error = self._calls.pop(call), call.exception()
            events.append(
                Done(self._name, work, call.result()) if error is None else raised_event(self._name, work, error)
            )
        if (failure := self._worker.failure()) is None:
            return events
        answered: list[PoolEvent] = [event for event in events if isinstance(event, Done)]
        if answered:
            return answered
        raise WorkersLost(f"the engine has failed: {failure}") from failure

    def close(self) -> None:
        if self._loaded:
            self._worker.close()


def raised_event(worker: str, work: Work, error: BaseException) -> Raised:
    """The event for a problem whose call raised `error`."""
    return Raised(worker, work, f"{type(error).__name__}: {error}")
