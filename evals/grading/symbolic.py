"""Decides whether two formulas are equal: asks math-verify in a process of its own, with a hard time limit.

math-verify times itself by a signal of the main thread and can hang all the same, so it runs where it has a main thread
and can be killed. The process is started when first needed, answers one pair at a time, in a millisecond, is killed
when it exceeds its time, and ends with this one, however that ends: its pipe is then closed.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from evals.types import UserError

if TYPE_CHECKING:
    from pebble import ProcessPool

SECONDS = 5.0
"""Time limit for one pair."""
START_SECONDS = 60.0
"""Time limit for the process to import sympy, on a busy machine."""
LOCK = Lock()
RUNTIMES = ("4.11.0", "4.11.1", "4.13.2")
"""Versions of antlr4-python3-runtime that math-verify has a parser for; its parser for 4.11 drops a percent sign."""


def check_installed() -> None:
    """Raises UserError unless math-verify is installed, and a runtime of antlr that it can use."""
    try:
        names = ("math-verify", "latex2sympy2_extended", "antlr4-python3-runtime")
        *_, runtime = map(version, names)
    except PackageNotFoundError as error:
        found = f"{error.name} is not installed"
    else:
        if runtime in RUNTIMES:
            return
        found = f"version {runtime} is installed"
    raise UserError(
        f"Formulas are compared by math-verify with antlr4-python3-runtime 4.11 or 4.13.2, and {found}; pip install "
        '"math-verify>=0.9,<0.10" "antlr4-python3-runtime==4.13.2".'
    )


def equal(gold: str, answer: str) -> bool | None:
    """Whether `answer` equals `gold`, both in LaTeX without `$`; the order matters. No text makes it raise.

    None where nothing can be decided: math-verify is not installed, cannot read a percent sign with this runtime,
    raises, dies or takes too long. May be called from any thread.
    """
    with LOCK:
        try:
            return checker().schedule(verdict, (gold, answer), timeout=SECONDS).result(START_SECONDS + SECONDS)
        except (OSError, RuntimeError):  # pebble's own: out of time, killed at work, killed before
            close()  # all of it: a process that was killed may have held a lock of its pipe
            return None


@cache
def checker() -> ProcessPool:
    """The pool of the one process, spawned because a child that is forked beside torch's threads may never run."""
    from pebble import ProcessPool

    return ProcessPool(max_workers=1, initializer=prepare, context=get_context("spawn"))


def close() -> None:
    """End the process; the next call of `equal` starts another."""
    checker().stop()
    checker().join()
    checker.cache_clear()


def prepare() -> None:
    """Make the new process silent, and have it import what takes long, before the time of the first pair begins."""
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    with suppress(ImportError):  # then every pair is undecided
        import math_verify  # noqa: F401


def verdict(gold: str, answer: str) -> bool | None:
    """What `equal` returns, in the process."""
    if "%" in gold + answer and version("antlr4-python3-runtime").startswith("4.11"):
        return None
    try:
        from math_verify import parse, verify

        first, second = (parse(f"${text}$", parsing_timeout=None, raise_on_error=True) for text in (gold, answer))  # type: ignore[arg-type]
        return bool(second) and verify(first, second, timeout_seconds=None, raise_on_error=True)
    except Exception:  # noqa: BLE001 - what it cannot decide is undecided
        return None
