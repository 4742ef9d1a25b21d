"""Decides when a worker counts as stalled, by time limits for loading, stepping and answering.

There are two signs: no progress at all (no step of the engine, no answer), and one problem that takes far longer than
any before it while the others proceed. Both limits are longer than loading, compiling and capturing graphs take.
"""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.cluster.worker_handle import WorkerHandle
from orchestrator.workers.pool import Work

LOAD_SECONDS = 1800.0
"""A worker that has not loaded after so long has stalled."""
STILL_SECONDS = 300.0
"""So has one that neither takes a step nor answers for so long, or for LOADS times as long as its load took."""
LOADS = 3
DEADLINE_SECONDS = 900.0
"""A problem may take so long, or ANSWERS times as long as the slowest answer so far; n times that at attempt n."""
ANSWERS = 20
MISSING_SECONDS = 120.0
"""A worker for which Ray has had no resources for so long is reported as missing; it may still come."""


class Stall(NamedTuple):
    """Why a worker counts as stalled, and which of its problems are to blame."""

    reason: str
    blamed: list[Work]


def detect_stall(handle: WorkerHandle, now: float, slowest_answer: float, joined: bool) -> Stall | None:
    """Why the actor of `handle` counts as stalled at `now` (monotonic seconds); None while it does not.

    `slowest_answer` is the longest that an answer of the run has taken, in seconds. In a cluster that was `joined`,
    waiting for resources is no stall.
    """
    if not handle.ready:
        waits = handle.load is None or (joined and handle.placement is not None)
        if waits or now - handle.progressed_at <= LOAD_SECONDS:
            return None
        return Stall(f"it began to load the model and did not get on for {LOAD_SECONDS:.0f} s", [])
    patience = max(STILL_SECONDS, LOADS * handle.load_seconds)
    if handle.calls and now - handle.progressed_at > patience:
        blamed = [call.work for call in handle.calls.values()]
        return Stall(f"it began to answer a problem and did not get on for {patience:.0f} s", blamed)
    deadline = max(DEADLINE_SECONDS, ANSWERS * slowest_answer)
    late = [call.work for call in handle.calls.values() if now - call.since > call.work.attempt * deadline]
    if not late:
        return None
    names = ", ".join(str(work.problem.problem_id) for work in late)
    return Stall(f"problem {names} was not answered in {deadline:.0f} s", late)


def is_missing(handle: WorkerHandle, now: float) -> bool:
    """Whether the actor of `handle` has waited so long for resources that it has to be reported."""
    return handle.placement is not None and not handle.missing and now - handle.requested_at > MISSING_SECONDS
