"""The crew of Ray actors: one per GPU or per share of the CPUs. Knows no model.

Ray starts processes and carries calls; it restarts and retries nothing (`max_restarts=0`): a death is then known within
10 ms and with its true cause, and the driver loop decides what becomes of the problems. This file replaces the actor.
Every RayError except RayTaskError means that the actor is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from orchestrator.join import LOCAL, alive_nodes, ray_address, start_ray, vital_places

# Before Ray: sets what Ray reads when it is imported.
from orchestrator.progress import say

import ray  # isort: skip
import psutil  # isort: skip # pyright: ignore[reportMissingModuleSource] - Ray brings it and puts it on the path
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from evals.types import UserError, WorkersLost
from orchestrator.config import RunConfig
from orchestrator.crew import Died, Done, Event, Health, Lost, Raised, Ready, Spawned, Work
from orchestrator.seat import Call, Hang, Seat

MAX_FAILED_STARTS = 3
MAX_REVIVALS = 3  # times that a local Ray is started again after one of its own processes died
BACK_OFF_SECONDS = 0.1, 5.0  # first pause before a replacement, doubled up to the last
NODES_SECONDS = 2.0


class RayCrew:
    """Actors of `worker_class(rank, name)`, as many as `run` says, each loaded with `config` and for `slots` calls."""

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
        self._seats = [Seat(rank, f"{kind}{rank}") for rank in range(run.num_actors)]
        self._events: list[Event] = []
        self._actor_class: Any = None
        self._nodes_at = 0.0
        self._vital: list[tuple[str, int]] = []
        self._num_revivals = 0
        self._slowest_answer = 0.0

    def start(self) -> None:
        """Start or join Ray and ask for the actors. Raises UserError if the cluster has fewer GPUs than wanted."""
        start_ray(self._run, self._job_name)
        self._on_ray()
        self._vital = vital_places()
        self._actor_class = actor_class(self._class, self._run, self._slots)
        for seat in self._seats:
            if not seat.given_up:
                self._start(seat)

    def reload(self, config: Any, slots: int) -> None:
        """`slots` may not be more than at the start: so many calls an actor takes at once."""
        self._config, self._slots = config, slots
        for seat in self._seats:
            if seat.actor is not None:
                seat.health = seat.slots = None
                seat.load = self._load(seat)
                seat.asked = seat.moved = time.monotonic()

    def free(self, unanswered: int) -> int:
        """Slots of workers that have said how many they have; while others load for the first time, none takes more
        than its even share.

        Otherwise the first to be ready would take a short run for itself. A replacement is not waited for.
        """
        most = self._slots
        if any(seat.num_starts == 1 and not seat.ready for seat in self._seats):
            most = min(most, -(-unanswered // len(self._seats)))
        return sum(max(0, min(seat.slots or 0, most) - len(seat.calls)) for seat in self._seats)

    def submit(self, work: Work) -> None:
        seat = min(
            (seat for seat in self._seats if len(seat.calls) < (seat.slots or 0)), key=lambda seat: len(seat.calls)
        )
        if not seat.calls:
            seat.moved = time.monotonic()
        seat.calls[seat.actor.solve.options(concurrency_group="work").remote(work)] = Call(work, time.monotonic())

    def ask_health(self) -> set[str]:
        for seat in self._seats:
            self._ask(seat)
        return {seat.name for seat in self._seats if seat.health is not None}

    def _ask(self, seat: Seat) -> None:
        if seat.ready and seat.health is None:
            seat.health = seat.actor.health.options(concurrency_group="hb").remote()

    def wait(self, timeout: float) -> list[Event]:
        self._check_nodes()
        for seat in self._seats:
            self._check(seat)
        owners = {ref: seat for seat in self._seats for ref in seat.refs()}
        if not owners:
            time.sleep(timeout)
        elif ray.wait(list(owners), num_returns=1, timeout=timeout)[0]:
            for ref in ray.wait(list(owners), num_returns=len(owners), timeout=0)[0]:
                self._collect(owners[ref], ref)
        events, self._events = self._events, []
        return events

    def _check_nodes(self) -> None:
        """Where no node is left nobody answers, and no replacement would ever come: a local Ray is started again.

        Raises WorkersLost where Ray is not ours to start, or was started again too often.
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
        for seat in self._seats:
            if seat.actor is not None:
                self._events.append(Died(seat.name, seat.vacate(), reason, "node", []))
        ray.shutdown()
        self.start()

    def _check(self, seat: Seat) -> None:
        """Start an actor where there is none, give one up that hangs, say of one that it waits for a place."""
        now = time.monotonic()
        if seat.actor is None:
            if now >= seat.start_at and not seat.given_up:
                self._start(seat)
        elif hang := seat.hang(now, self._slowest_answer, joined=ray_address() != LOCAL):
            self._down(seat, TimeoutError(hang.reason), hang)
        elif seat.is_missing(now):
            seat.missing = True
            self._events.append(Lost(seat.name, f"Ray has had no place for it for {now - seat.asked:.0f} s"))

    def close(self) -> None:
        ours = [] if self._actor_class else psutil.Process().children(recursive=True)
        ray.shutdown()
        for process in ours:  # of a start that was broken off, Ray knows only part of its processes
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _start(self, seat: Seat) -> None:
        seat.num_starts += 1
        name = seat.name if seat.num_starts == 1 else f"{seat.name}-{seat.num_starts}"
        seat.actor = self._actor_class.options(name=name).remote(seat.rank, seat.name)
        seat.asked = seat.moved = time.monotonic()
        seat.placed = seat.actor.__ray_call__.remote(node_id)
        seat.load = self._load(seat)
        self._events.append(Spawned(seat.name, seat.num_starts))

    def _load(self, seat: Seat) -> Any:
        """A call of its actor's `load`."""
        arguments = [self._config] if seat.room is None else [self._config, seat.room]
        return seat.actor.load.options(concurrency_group="work").remote(*arguments)

    def _collect(self, seat: Seat, ref: Any) -> None:
        """Turn one finished call into an event; a call whose seat was vacated in this pass is history."""
        if ref not in seat.refs():
            return
        try:
            answer = ray.get(ref)
        except RayTaskError as error:  # first: it is also an instance of the exception that the worker raised
            self._raised(seat, ref, error)
        except RayError as error:
            self._down(seat, error)
        else:
            self._answered(seat, ref, answer)

    def _answered(self, seat: Seat, ref: Any, answer: Any) -> None:
        now = time.monotonic()
        if ref == seat.health:
            seat.health, seat.slots = None, answer.get("slots", self._slots)
            if answer.get("steps") != seat.steps:
                seat.steps, seat.moved = answer.get("steps"), now
            self._events.append(Health(seat.name, answer))
            return
        began, seat.moved = seat.moved, now
        if ref == seat.placed:
            seat.placed, seat.node, seat.missing = None, answer, False
        elif ref == seat.load:
            seat.load, seat.failed_starts, seat.room = None, 0, answer
            seat.load_seconds = max(seat.load_seconds, now - began)
            self._events.append(Ready(seat.name, now - seat.asked))
            self._ask(seat)
        else:
            work, since = seat.calls.pop(ref)
            self._slowest_answer = max(self._slowest_answer, now - since)
            self._events.append(Done(seat.name, work, answer))

    def _raised(self, seat: Seat, ref: Any, error: RayTaskError) -> None:
        """The worker's own code raised; a problem may do that, loading and health may not.

        What the user could mend shows at the first load of all. Later ones of the same model fail for other reasons,
        such as memory that a dead actor still holds.
        """
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, UserError) and ref == seat.load and not any(each.has_loaded for each in self._seats):
            raise UserError(str(cause)) from error
        if ref in seat.calls:
            self._events.append(Raised(seat.name, seat.calls.pop(ref).work, f"{type(cause).__name__}: {cause}"))
        else:
            self._down(seat, error)

    def _down(self, seat: Seat, error: Exception, hang: Hang | None = None) -> None:
        """Vacate the seat and plan a replacement. Raises WorkersLost where no worker is left that could be."""
        reason, blamed, cause = str(error).strip(), hang.blamed if hang else None, "hang" if hang else "crash"
        if isinstance(error, OutOfMemoryError):
            cause = "oom"
        elif hang is None and seat.node is not None and seat.node not in alive_nodes(self._vital):
            cause, blamed = "node", []  # no problem did that
        ray.kill(seat.actor)
        seat.failed_starts += seat.load is not None
        self._events.append(Died(seat.name, seat.vacate(), reason, cause, blamed))
        first, longest = BACK_OFF_SECONDS
        seat.start_at = time.monotonic() + min(longest, first * 2**seat.failed_starts)
        if seat.failed_starts < MAX_FAILED_STARTS:
            return
        if not any(other.has_loaded and not other.given_up for other in self._seats if other is not seat):
            raise WorkersLost(f"worker {seat.name} could not start {seat.failed_starts} times: {reason}") from error
        seat.given_up = True
        self._events.append(Lost(seat.name, f"it could not start {seat.failed_starts} times: {reason}"))


def node_id(actor: Any) -> str:
    """The node on which an actor runs; called in it."""
    return ray.get_runtime_context().get_node_id()


def actor_class(worker_class: type, run: RunConfig, slots: int) -> Any:
    """The worker as an actor class. Group sizes are fixed here: a group below `slots` would cap the batch."""
    cpus = ray.cluster_resources().get("CPU", 1.0)
    # At most one CPU each, so that every actor finds a node; Ray counts in 1/10,000, rounded down here so that all fit.
    share = min(1.0, int(cpus / run.num_actors * 10_000) / 10_000)
    options: dict[str, Any] = {"num_gpus": run.engine.tensor_parallel, "num_cpus": 0}
    if not run.use_gpus:
        options = {"num_cpus": share}
    options |= {"max_restarts": 0, "max_task_retries": 0, "concurrency_groups": {"work": slots, "hb": 2}}
    return ray.remote(**options)(worker_class)
