"""Worker pool of Ray actors: one per GPU or per share of the CPUs, each replaced when it dies or stalls.

Ray starts processes and carries calls; it restarts and retries nothing (`max_restarts=0`): a death is then known within
10 ms and with its true cause, and the dispatcher decides what becomes of the problems. This pool replaces the actor.
Every RayError except RayTaskError means that the actor is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

# Before Ray: sets what Ray reads when it is imported.
from orchestrator.cluster.ray_session import LOCAL, alive_nodes, ray_address, start_ray, vital_addresses

import ray  # isort: skip
import psutil  # isort: skip # pyright: ignore[reportMissingModuleSource] - Ray brings it and puts it on the path
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from evals.types import UserError, WorkersLost
from orchestrator.cluster.stalls import Stall, detect_stall, is_missing
from orchestrator.cluster.worker_handle import Call, WorkerHandle
from orchestrator.console import say
from orchestrator.rundir.telemetry_rows import Event
from orchestrator.settings.config import RunConfig
from orchestrator.workers.pool import Died, Done, Health, Message, Raised, Work

MAX_FAILED_STARTS = 3
MAX_REVIVALS = 3  # times that a local Ray is started again after one of its own processes died
BACK_OFF_SECONDS = 0.1, 5.0  # first pause before a replacement, doubled up to the last
NODES_SECONDS = 2.0


class RayWorkerPool:
    """`run.num_actors` actors of `worker_class(rank, name)`, each loaded with `config`, for `slots` calls at once."""

    def __init__(
        self,
        worker_class: type,
        config: Any,
        run: RunConfig,
        slots: int,
        job_name: str = "powersample",
        on_ray: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_ray` is called once Ray is up: signal handlers must be set after it, since Ray overwrites SIGTERM's."""
        self._class, self._config, self._run, self._slots = worker_class, config, run, slots
        self._job_name, self._on_ray = job_name, on_ray
        kind = "gpu" if run.use_gpus else "cpu"
        self._handles = [WorkerHandle(rank, f"{kind}{rank}") for rank in range(run.num_actors)]
        self._messages: list[Message] = []
        self._actor_class: Any = None
        self._nodes_at = 0.0
        self._vital: list[tuple[str, int]] = []
        self._num_revivals = 0
        self._slowest_answer = 0.0
        self._numbers = count(1)
        self._others = {*psutil.Process().children(recursive=True)}
        """Processes that are not Ray's."""

    def start(self) -> None:
        """Start or join Ray and request the actors. Raises UserError if the cluster has fewer GPUs than wanted."""
        start_ray(self._run, self._job_name)
        self._on_ray()
        self._vital = vital_addresses()
        self._actor_class = actor_class(self._class, self._run, self._slots)
        for handle in self._handles:
            if not handle.given_up:
                self._start(handle)

    def reload(self, config: Any, slots: int) -> None:
        """As `WorkerPool.reload`; `slots` may not exceed those at the start, the most calls an actor takes at once."""
        self._config, self._slots = config, slots
        for handle in self._handles:
            if handle.actor is not None:
                handle.health = handle.slots = None
                handle.load = self._load(handle)
                handle.requested_at = handle.progressed_at = time.monotonic()

    def free_slots(self, unanswered: int) -> int:
        """Free slots of the workers that have reported how many they have.

        While others load for the first time, each counts no more than its even share: else the first to be ready would
        take all of a short run. A replacement is not waited for.
        """
        most = self._slots
        if any(handle.num_starts == 1 and not handle.ready for handle in self._handles):
            most = min(most, -(-unanswered // len(self._handles)))
        return sum(max(0, min(handle.slots or 0, most) - len(handle.calls)) for handle in self._handles)

    def submit(self, work: Work) -> None:
        handle = min(
            (handle for handle in self._handles if len(handle.calls) < (handle.slots or 0)),
            key=lambda handle: len(handle.calls),
        )
        if not handle.calls:
            handle.progressed_at = time.monotonic()
        number = next(self._numbers)
        ref = handle.actor.solve.options(concurrency_group="work").remote(work._replace(call=number))
        handle.calls[ref] = Call(work, time.monotonic(), number)

    def cancel(self, work: Work) -> None:
        for handle in self._handles:
            for ref in [ref for ref, call in handle.calls.items() if call.work is work]:
                handle.actor.cancel.options(concurrency_group="hb").remote(handle.calls.pop(ref).number)
                handle.cancelled.add(ref)

    def request_health(self) -> set[str]:
        for handle in self._handles:
            self._ask(handle)
        return {handle.name for handle in self._handles if handle.health is not None}

    def _ask(self, handle: WorkerHandle) -> None:
        if handle.ready and handle.health is None:
            handle.health = handle.actor.health.options(concurrency_group="hb").remote()

    def wait(self, timeout: float) -> list[Message]:
        self._check_nodes()
        for handle in self._handles:
            self._check(handle)
        owners = {ref: handle for handle in self._handles for ref in handle.refs()}
        if not owners:
            time.sleep(timeout)
        elif ray.wait(list(owners), num_returns=1, timeout=timeout)[0]:
            for ref in ray.wait(list(owners), num_returns=len(owners), timeout=0)[0]:
                self._collect(owners[ref], ref)
        messages, self._messages = self._messages, []
        return messages

    def _check_nodes(self) -> None:
        """Start a local Ray again where no node is alive: no call would be answered and no replacement started.

        Raises WorkersLost where Ray is not this process's own, or was started again too often.
        """
        if time.monotonic() < self._nodes_at:
            return
        self._nodes_at = time.monotonic() + NODES_SECONDS
        if alive_nodes(self._vital):
            return
        reason = "Ray's node is gone (one of its own processes died)"
        if not self._vital or self._num_revivals == MAX_REVIVALS:
            raise WorkersLost(f"{reason}, and no worker can be started on it")
        self._num_revivals += 1
        say(f"{reason}: starting Ray again.")
        for handle in self._handles:
            if handle.actor is not None:
                self._messages.append(Died(handle.name, handle.vacate(), reason, "node", []))
        ray.shutdown()
        self.start()

    def _check(self, handle: WorkerHandle) -> None:
        """Start an actor where there is none, kill one that has stalled, report one that waits for resources."""
        now = time.monotonic()
        if handle.actor is None:
            if now >= handle.start_at and not handle.given_up:
                self._start(handle)
        elif stall := detect_stall(handle, now, self._slowest_answer, joined=ray_address() != LOCAL):
            self._down(handle, TimeoutError(stall.reason), stall)
        elif is_missing(handle, now):
            handle.missing = True
            reason = f"Ray has had no place for it for {now - handle.requested_at:.0f} s"
            self._messages.append(Event(event="lost", worker=handle.name, reason=reason))

    def close(self) -> None:
        children = set() if self._actor_class else {*psutil.Process().children(recursive=True)} - self._others
        ray.shutdown()
        for process in children:  # of a start that was broken off, Ray knows only part of its processes
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _start(self, handle: WorkerHandle) -> None:
        handle.num_starts += 1
        name = handle.name if handle.num_starts == 1 else f"{handle.name}-{handle.num_starts}"
        handle.actor = self._actor_class.options(name=name).remote(handle.rank, handle.name)
        handle.requested_at = handle.progressed_at = time.monotonic()
        handle.placement = handle.actor.__ray_call__.remote(node_id)
        handle.load = self._load(handle)
        self._messages.append(Event(event="spawn", worker=handle.name, number=handle.num_starts))

    def _load(self, handle: WorkerHandle) -> Any:
        """Call the actor's `load`; returns the reference of its result."""
        arguments = [self._config] if handle.room is None else [self._config, handle.room]
        return handle.actor.load.options(concurrency_group="work").remote(*arguments)

    def _collect(self, handle: WorkerHandle, ref: Any) -> None:
        """Turn a finished call into a message, unless its handle was vacated in this pass."""
        if ref not in handle.refs():
            return
        try:
            answer = ray.get(ref)
        except RayTaskError as error:  # first: it is also an instance of the exception that the worker raised
            self._raised(handle, ref, error)
        except RayError as error:
            self._down(handle, error)
        else:
            self._answered(handle, ref, answer)

    def _answered(self, handle: WorkerHandle, ref: Any, answer: Any) -> None:
        now = time.monotonic()
        if isinstance(answer, Health):
            slots, steps = answer.state.slots, answer.state.steps
            handle.health, handle.slots = None, self._slots if slots is None else slots
            if steps != handle.steps:
                handle.steps, handle.progressed_at = steps, now
            self._messages.append(answer)
            return
        began, handle.progressed_at = handle.progressed_at, now
        if ref == handle.placement:
            handle.placement, handle.node, handle.missing = None, answer, False
        elif ref == handle.load:
            handle.load, handle.failed_starts, handle.room = None, 0, answer
            handle.load_seconds = max(handle.load_seconds, now - began)
            self._messages.append(Event(event="ready", worker=handle.name, seconds=now - handle.requested_at))
            self._ask(handle)
        elif ref in handle.cancelled:
            handle.cancelled.remove(ref)
        else:
            call = handle.calls.pop(ref)
            self._slowest_answer = max(self._slowest_answer, now - call.since)
            self._messages.append(Done(handle.name, call.work, answer))

    def _raised(self, handle: WorkerHandle, ref: Any, error: RayTaskError) -> None:
        """Handle an exception of the worker's own code: only one from a problem leaves the actor alive.

        A UserError is raised before any load has succeeded. Later loads of the same model fail for reasons that the
        user cannot mend, such as memory that a dead actor still holds.
        """
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, UserError) and ref == handle.load and not any(each.has_loaded for each in self._handles):
            raise UserError(cause.reason, cause.settings) from error
        if ref in handle.calls:
            self._messages.append(Raised(handle.name, handle.calls.pop(ref).work, f"{type(cause).__name__}: {cause}"))
        elif ref in handle.cancelled:
            handle.cancelled.remove(ref)
        else:
            self._down(handle, error)

    def _down(self, handle: WorkerHandle, error: Exception, stalled: Stall | None = None) -> None:
        """Kill the actor and schedule a replacement. Raises WorkersLost if no other worker is left to go on."""
        reason, blamed, cause = str(error).strip(), stalled.blamed if stalled else None, "hang" if stalled else "crash"
        if isinstance(error, OutOfMemoryError):
            cause = "oom"
        elif stalled is None and handle.node is not None and handle.node not in alive_nodes(self._vital):
            cause, blamed = "node", []  # no problem did that
        ray.kill(handle.actor)
        handle.failed_starts += handle.load is not None
        self._messages.append(Died(handle.name, handle.vacate(), reason, cause, blamed))
        first, longest = BACK_OFF_SECONDS
        handle.start_at = time.monotonic() + min(longest, first * 2**handle.failed_starts)
        if handle.failed_starts < MAX_FAILED_STARTS:
            return
        if not any(other.has_loaded and not other.given_up for other in self._handles if other is not handle):
            raise WorkersLost(f"worker {handle.name} could not start {handle.failed_starts} times: {reason}") from error
        handle.given_up = True
        reason = f"it could not start {handle.failed_starts} times: {reason}"
        self._messages.append(Event(event="lost", worker=handle.name, reason=reason))


def node_id(actor: Any) -> str:
    """The id of the node on which an actor runs; called inside the actor."""
    return ray.get_runtime_context().get_node_id()


def actor_class(worker_class: type, run: RunConfig, slots: int) -> Any:
    """The worker as a Ray actor class. Its concurrency groups are fixed here: one below `slots` would cap the batch."""
    cpus = ray.cluster_resources().get("CPU", 1.0)
    # At most one CPU each, so that every actor finds a node; Ray counts in 1/10,000, rounded down here so that all fit.
    share = min(1.0, int(cpus / run.num_actors * 10_000) / 10_000)
    options: dict[str, Any] = {"num_gpus": run.engine.gpus_per_model, "num_cpus": 0}
    if not run.use_gpus:
        options = {"num_cpus": share}
    options |= {"max_restarts": 0, "max_task_retries": 0, "concurrency_groups": {"work": slots, "hb": 2}}
    return ray.remote(**options)(worker_class)
