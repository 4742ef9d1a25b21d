"""SIGINT and SIGTERM as a request to stop that leaves runs which can go on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ONE_STOP_SECONDS = 1.0  # a terminal, a shell and a job manager may each pass the same Ctrl-C on


class Stop:
    """False until SIGINT or SIGTERM asks the session to stop, which leaves runs that can go on. A second request ends
    the process, whatever blocks it."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._asked = 0.0
        self._breaks = False
        self._old: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.number is not None

    def install(self) -> None:
        """Take the signals; once more after Ray has started, which takes SIGTERM for itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            old = signal.signal(number, self._handle)
            self._old.setdefault(number, old)

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """What is done within is broken off by a request, by an exception that stays in here. Check for an earlier one
        within. The signals are ours again afterwards."""
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
