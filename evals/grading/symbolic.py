"""Decides whether two formulas are equal: asks math-verify in a child process, with a hard time limit.

math-verify times itself by a signal of the main thread and can hang all the same, so it runs where it has a main thread
and can be killed. One child (this module, run) answers one pair at a time, in well under a millisecond; it is started
when first needed, killed when it exceeds its time, and replaced for the next pair, so that an answer that hangs costs
the limit and no other verdict.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import IO, Any

SECONDS = 5.0
"""Time limit for one pair."""
START_SECONDS = 60.0
"""Time limit for a child to import sympy, on a busy machine."""
COMMAND = (sys.executable, "-m", "evals.grading.symbolic")


class Judge:
    """A child process that compares formulas; `equal` may be called from any thread."""

    def __init__(self, seconds: float = SECONDS, command: Sequence[str] = COMMAND) -> None:
        self._seconds, self._command, self._lock = seconds, tuple(command), Lock()
        self._child: subprocess.Popen[str] | None = None
        self._lines: SimpleQueue[str] = SimpleQueue()

    def equal(self, gold: str, answer: str) -> bool | None:
        """Whether `answer` equals `gold`, both in LaTeX without `$`; the order matters. No text makes it raise.

        None where nothing can be decided: math-verify is not installed, raises, dies or takes too long.
        """
        with self._lock:
            if self._child is None and not self._start():
                return None
            reply = self._ask(json.dumps([gold, answer]) + "\n", self._seconds)
            if reply not in ("right", "wrong", "undecided"):
                self._kill()
            return {"right": True, "wrong": False}.get(reply)

    def close(self) -> None:
        """End the child; the next call of `equal` would start another."""
        with self._lock:
            self._kill()

    def _start(self) -> bool:
        """Start a child; returns whether it can be used."""
        self._lines = SimpleQueue()
        self._child = subprocess.Popen(
            self._command,
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        Thread(target=pump, args=(self._child.stdout, self._lines), name="judge", daemon=True).start()
        ready = self._ask("", START_SECONDS) == "ready"
        if not ready:
            self._kill()
        return ready

    def _ask(self, line: str, seconds: float) -> str:
        """The child's next line; empty if it is dead or does not answer in time."""
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line)
            self._child.stdin.flush()
            return self._lines.get(timeout=seconds)
        except (BrokenPipeError, Empty):
            return ""

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            if self._child.stdin is not None:
                with suppress(BrokenPipeError):  # what it has not read is lost with it
                    self._child.stdin.close()
            self._child.wait()
            self._child = None


def pump(stream: IO[str] | None, lines: SimpleQueue[str]) -> None:
    """Put every line of a child into the queue, and an empty one when it has ended."""
    assert stream is not None
    with stream:
        for line in stream:
            lines.put(line.rstrip("\n"))
    lines.put("")


@cache
def judge() -> Judge:
    """The judge of this process. Its child ends with the process, however that ends: its input is then closed."""
    shared = Judge()
    atexit.register(shared.close)
    return shared


def main() -> None:
    """The child: `ready`, then for every [gold, answer] on standard input `right`, `wrong` or `undecided`."""
    from math_verify import parse, verify

    def read(text: str) -> list[Any]:
        return parse(f"${text}$", parsing_timeout=None, raise_on_error=True)  # type: ignore[arg-type]

    print("ready", flush=True)
    for line in sys.stdin:
        try:
            gold, answer = map(read, json.loads(line))
            right = bool(answer) and verify(gold, answer, timeout_seconds=None, raise_on_error=True)  # gold first
            print("right" if right else "wrong", flush=True)
        except Exception:  # noqa: BLE001 - no pair may spoil the next one
            print("undecided", flush=True)


if __name__ == "__main__":
    main()
