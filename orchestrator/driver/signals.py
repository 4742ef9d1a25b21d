"""Handles SIGINT and SIGTERM as a request to stop a session so that its runs can be resumed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ONE_STOP_SECONDS = 1.0  # a terminal, a shell and a job manager may each pass the same Ctrl-C on


class Stop:
    """The request to stop: false until SIGINT or SIGTERM arrives. A second one ends the process, whatever blocks it."""

    def __init__(self) -> None:
        self.number: int | None = None
        """Number of the signal that came; None before one."""
        self._asked = 0.0
        self._breaks = False
        self._old: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.number is not None

    def install(self) -> None:
        """Set the handlers; needed again after Ray has started, which sets its own for SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            old = signal.signal(number, self._handle)
            self._old.setdefault(number, old)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within this context a request breaks off what is being done, by an exception that ends here.

        A request from before raises nothing, so check for it within. Afterwards the handlers are set again.
        """
        self._breaks = True
        try:
            yield
        except SystemExit as error:  # Ray's answer to SIGTERM, which it takes for itself while it starts
            if self.number is None and error.code != signal.SIGTERM:
                raise
            self.number = self.number or signal.SIGTERM
        except KeyboardInterrupt:
            if self.number is None:
                raise
        finally:
            self._breaks = False
            self.install()

    def restore(self) -> None:
        """Set the handlers from before `install` again."""
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._asked = number, now
            if self._breaks:
                raise KeyboardInterrupt
        elif now - self._asked >= ONE_STOP_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
