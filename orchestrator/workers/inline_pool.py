"""Worker pool of a single worker in this process, without Ray (`--inline`)."""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from evals.record import Record
from evals.types import WorkersLost
from orchestrator.rundir.telemetry_rows import Event
from orchestrator.workers.pool import Done, Message, Raised, Work

BACKLOG = 1 / 8
"""Share of the slots that wait in the engine beside those that run: a slot that falls free is taken at once, and not
when its answer has been graded."""


class InlineWorkerPool:
    """Runs one `Worker` in this process, so a crash of the worker ends both. `start` raises what `load` raises."""

    def __init__(self, worker: Any, config: Any, slots: int) -> None:
        self._worker, self._config, self._slots, self._name = worker, config, slots, "inline"
        self._calls: dict[Future[Record], Work] = {}
        self._ended = SimpleQueue[Future[Record]]()
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
        return self._slots + int(self._slots * BACKLOG) - len(self._calls)

    def submit(self, work: Work) -> None:
        try:
            call = self._worker.begin(work)
        except Exception as error:  # noqa: BLE001 - reported as this problem's, as it would come from an actor
            self._messages.append(self._raised(work, error))
        else:
            self._calls[call] = work
            call.add_done_callback(self._ended.put)

    def cancel(self, work: Work) -> None:
        self._messages = [one for one in self._messages if not (isinstance(one, Raised) and one.work is work)]
        for call in [call for call, under_way in self._calls.items() if under_way is work]:
            del self._calls[call]
            call.cancel()

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
        with suppress(Empty):
            call = self._ended.get(timeout=0 if messages else timeout)
            while True:
                if work := self._calls.pop(call, None):  # else it was cancelled
                    error = call.exception()
                    done = Done(self._name, work, call.result()) if error is None else self._raised(work, error)
                    messages.append(done)
                call = self._ended.get_nowait()
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
