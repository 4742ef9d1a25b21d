"""Tries whether a batch size works, in a child process and by the worker's own code."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from pebble import ProcessExpired, ProcessPool

from evals.sizing.slots import gib
from evals.types import Problem
from orchestrator.settings.config import RunConfig
from orchestrator.workers.pool import Work
from orchestrator.workers.worker import Worker, WorkerConfig

ANSWER_TOKENS = 32
STATUS = Path("/proc/self/status")


class Outcome(NamedTuple):
    """Result of a probe."""

    peak_bytes: int | None
    """Most that was allocated on the GPU, or held of a host's memory; None where memory ran out."""
    reason: str = ""
    """Why the batch does not work; empty where it does."""


def probe_work(config: RunConfig, problems: Sequence[Problem], size: int) -> list[Work]:
    """The work of a probe: `size` answers, to the longest questions, of at most ANSWER_TOKENS each."""
    longest = sorted(problems, key=lambda problem: -len(problem.question))
    task = config.task.model_copy(update={"max_new_tokens": min(ANSWER_TOKENS, config.task.max_new_tokens)})
    return [Work(longest[i % len(longest)], i // len(longest), config.sampler, task, config.seed) for i in range(size)]


def probe(settings: WorkerConfig, works: Sequence[Work], limit: int | None = None) -> Outcome:
    """Try in a child process whether a worker of `settings` answers all `works` at once, in a slot each.

    `limit` is in bytes of a host's memory. Raises UserError where the model cannot be used in any batch, and whatever
    else the worker raises.
    """
    child = ProcessPool(max_workers=1, context=get_context("spawn"))
    try:
        return child.schedule(outcome, (settings, works, limit)).result()
    except ProcessExpired as error:
        if error.exitcode == -signal.SIGKILL:
            return Outcome(None, "the system had no memory left and ended the process")
        raise
    finally:
        child.stop()
        child.join()


def outcome(settings: WorkerConfig, works: Sequence[Work], limit: int | None) -> Outcome:
    """Answer the batch in this process, the child, and return the Outcome. Raises what the worker raises.

    A host's limit is compared, not enforced: libraries that are refused memory fail in unforeseeable ways. Keys and
    values for all slots count before they are written to, so a batch that is too large ends before it takes its room.
    """
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, the system kills this process first
    worker = Worker(0, "probe")
    try:
        worker.load(settings)
        if limit is not None and bytes_held() > limit:
            return Outcome(bytes_held(), f"more than {gib(limit)}")
        for future in [worker.begin(work) for work in works]:
            future.result()
        state = worker.health().state
        worker.close()
    except Exception as error:
        if reason := out_of_memory_reason(error):
            return Outcome(None, reason)
        raise
    peak = state.memory.peak_bytes or bytes_held()
    if limit is not None and peak > limit:
        return Outcome(peak, f"more than {gib(limit)}")
    return Outcome(peak, "" if state.slots == len(works) else f"there is room for {state.slots}")


def bytes_held() -> int:
    """Bytes that this process holds: its data, written to or not, or its peak resident size, whichever is more."""
    sizes = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * max(int(sizes[name].split()[0]) for name in ("VmData", "VmHWM"))


def out_of_memory_reason(error: BaseException | None) -> str | None:
    """How memory ran out, on a GPU or on the host, as text; None if `error` has another cause."""
    from evals.engine.device import out_of_memory

    if reason := out_of_memory(error):
        return reason
    while error is not None:
        if isinstance(error, MemoryError) or "annot allocate memory" in str(error):
            return f"{type(error).__name__}: {error}".splitlines()[0]
        error = error.__context__
    return None
