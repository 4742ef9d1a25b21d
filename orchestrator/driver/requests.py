"""Requests of a program: work that arrives at any time, and comes back by futures.

A thread drives a worker pool by the same dispatcher as a run, so that what fails is asked again in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from threading import Condition, Thread, current_thread
from time import monotonic
from typing import Any, TypeVar

from evals.record import Record
from evals.types import UserError
from orchestrator.driver.dispatcher import HEALTH_SECONDS, WAIT_SECONDS, Dispatcher
from orchestrator.rundir.telemetry_rows import Event, TelemetryRow
from orchestrator.workers.pool import Work, WorkerPool

T = TypeVar("T")
ARRIVAL_SECONDS = 0.02
"""Longest time that a request waits for the thread while others are under way."""
CLOSED = "the workers were closed"
REFUSED = f"{UserError.__name__}: "


@dataclass(eq=False)
class Request:
    """Several pieces of work that one future waits for."""

    future: Future[Any]
    output: Callable[[list[Record]], Any]
    records: dict[int, Record | None]
    """By the serial number of the work, in order; None while it is under way."""
    left: int


class Requests:
    """Has a pool do work for futures. A future that is cancelled takes its work back, wherever it is."""

    def __init__(self, pool: WorkerPool) -> None:
        """Start the pool and wait until a worker has loaded. Raises what the pool raises."""
        log = logging.getLogger("powersample").info
        self._pool = pool
        self._dispatcher = Dispatcher(pool, self._answered, self._heard, lambda state: None, say=log)
        self._serials = count(1)
        self._under_way: dict[int, Request] = {}
        self._changed = Condition()
        self._arrived: list[Work] = []
        self._cancelled: list[Request] = []
        self._closing, self._ready = False, False
        self._failure: BaseException = RuntimeError(CLOSED)
        try:
            pool.start()
            while not self._ready:
                self._listen(WAIT_SECONDS)
        except BaseException:
            pool.close()
            raise
        self._thread = Thread(target=self._loop, name="requests", daemon=True)
        self._thread.start()

    def ask(self, works: Iterable[Work], output: Callable[[list[Record]], T]) -> Future[T]:
        """Have work done; from any thread. The future gets `output` of the records, in order.

        If a worker refuses one it raises UserError, if one fails however often it is tried RuntimeError, and the others
        are taken back. Raises what ended the pool, if it has ended.
        """
        numbered = {serial: work._replace(serial=serial) for serial, work in zip(self._serials, works, strict=False)}
        request = Request(Future(), output, dict.fromkeys(numbered), len(numbered))
        with self._changed:
            if self._closing or not self._thread.is_alive():  # as in a forked child
                raise self._failure
            self._under_way |= dict.fromkeys(numbered, request)
            self._arrived += numbered.values()
            self._changed.notify()
        request.future.add_done_callback(lambda done: self._cancelled.append(request) if done.cancelled() else None)
        return request.future

    def close(self) -> None:
        """End the workers; what is under way fails with a RuntimeError."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if current_thread() is not self._thread:  # where the last answer held the last reference
            self._thread.join()

    def _answered(self, work: Work, record: Record) -> None:
        request = self._under_way.pop(work.serial, None)
        if request is None:
            return
        request.records[work.serial] = record
        request.left -= 1
        if record.status == "failed":
            reason = record.error or ""
            refused = reason.startswith(REFUSED)
            self._end(request, UserError(reason[len(REFUSED) :]) if refused else RuntimeError(f"it failed: {reason}"))
        elif not request.left:
            self._end(request)

    def _end(self, request: Request, error: BaseException | None = None) -> None:
        """End a request, with an error or if it was cancelled before its work is done."""
        self._take_back([request])
        request.left = 0
        if not request.future.set_running_or_notify_cancel():
            return
        if error is None:
            request.future.set_result(request.output([one for one in request.records.values() if one is not None]))
        else:
            request.future.set_exception(error)

    def _take_back(self, requests: Iterable[Request]) -> None:
        serials = {serial for one in requests for serial in one.records if serial in self._under_way}
        if serials:  # all at once: the dispatcher goes through its whole queue
            self._dispatcher.forget(serials)
        for serial in serials:
            del self._under_way[serial]

    def _heard(self, row: TelemetryRow) -> None:
        self._ready = self._ready or (isinstance(row, Event) and row.event == "ready")

    def _listen(self, timeout: float) -> None:
        for message in self._pool.wait(timeout):
            self._dispatcher.handle(message)

    def _loop(self) -> None:
        next_health = 0.0
        try:
            while not self._closing:
                self._take()
                self._dispatcher.fill()
                if monotonic() >= next_health:
                    self._pool.request_health()
                    next_health = monotonic() + HEALTH_SECONDS
                self._listen(ARRIVAL_SECONDS if self._under_way else 0.0)
        except BaseException as error:  # noqa: BLE001 - handed to all that wait, and raised by `ask`
            with self._changed:
                self._closing, self._failure = True, error
        finally:
            try:
                self._pool.close()
            except Exception:  # an engine that has failed says so again; all that wait are told below
                logging.getLogger("powersample").info("The workers did not close.", exc_info=True)
            requests = {*self._under_way.values()}
            self._under_way.clear()  # from a closed pool nothing is taken back: Ray would start again
            for request in requests:
                self._end(request, self._failure)

    def _take(self) -> None:
        """Hand on what has arrived, and take back what was cancelled; asleep while there is nothing to do."""
        with self._changed:
            if not self._under_way:
                self._changed.wait_for(lambda: self._arrived or self._closing, WAIT_SECONDS)
            cancelled = [self._cancelled.pop() for _ in range(len(self._cancelled))]  # each arrived before
            arrived, self._arrived = self._arrived, []
        self._dispatcher.queue.extend(arrived)
        self._take_back(cancelled)
        for request in cancelled:
            if request.left:
                self._end(request)
