"""Ctrl-C and SIGTERM as a request to stop, which leaves a run that can go on. Knows no run."""

from __future__ import annotations

import signal
import time
from typing import Any

ONE_STOP_SECONDS = 1.0  # a terminal, a shell and a job manager may each pass the same Ctrl-C on


class Stop:
    """False until SIGINT or SIGTERM asks the session to stop. A second request ends the process, whatever blocks it."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._asked = 0.0
        self._old: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.number is not None

    def install(self) -> None:
        """Take the signals; once more after Ray has started, which takes SIGTERM for itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            old = signal.signal(number, self._handle)
            self._old.setdefault(number, old)

    def restore(self) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._asked = number, now
        elif now - self._asked >= ONE_STOP_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
