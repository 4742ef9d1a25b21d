"""The crew of Ray actors: one per GPU or per share of the CPUs. The only file that imports Ray; knows no model.

Ray starts processes and carries calls; it restarts and retries nothing (`max_restarts=0`): a death is then known within
10 ms and with its true cause, and the driver loop decides what becomes of the problems. This file replaces the actor.
Every RayError except RayTaskError means that the actor is gone.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

# Read when Ray is imported: nobody without the token may give Ray work, and nothing is reported to anybody.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError, RayTaskError
from ray.job_config import JobConfig

from evals.types import UserError
from orchestrator.dashboard import invitation
from orchestrator.driver import Died, Done, Event, Health, Raised, Ready, Work, WorkersLost

MAX_FAILED_STARTS = 3
BACK_OFF_SECONDS = 0.1, 5.0  # first pause before a replacement, doubled up to the last
CONNECT_SECONDS = 10.0
NODES_SECONDS = 2.0
HEALTH_CHECK = {"initial_delay_ms": 1000, "period_ms": 1000, "timeout_ms": 2000, "failure_threshold": 3}
"""Of nodes by a local Ray: a dead one is known after 3 s instead of 13 s, a frozen one after 9 s instead of 63 s."""
STILL_SECONDS = 1800.0
"""A worker that neither loads nor gets on for so long counts as dead; no load of a model and no step takes as long."""
OBJECT_STORE_BYTES = 256 << 20  # records are small; the default, 30 % of RAM, spills out of a small /dev/shm
LOCAL = "local"  # an address of Ray's: a cluster of this process's own
CHECKOUT = Path(__file__).parents[1]


class Shape(NamedTuple):
    """How many actors, and what each gets."""

    num_workers: int
    slots: int
    use_gpus: bool
    job_name: str = "powersample"
    dashboard: bool | None = None
    """None: if its packages are there."""


@dataclass
class Seat:
    """The place of one worker, whichever actor holds it at present."""

    rank: int
    name: str
    num_starts: int = 0
    failed_starts: int = 0
    start_at: float = 0.0
    """When the next actor may be started (monotonic seconds), while there is none."""
    actor: Any = None
    asked: float = 0.0
    moved: float = 0.0
    """When it last got on (monotonic seconds): asked for, placed, loaded, given its first work, a step, an answer."""
    steps: Any = None
    placed: Any = None
    """Pending call that is answered once its process runs; it has no place while others have the device."""
    load: Any = None
    """Pending call of `load`, while it loads."""
    health: Any = None
    calls: dict[Any, Work] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.actor is not None and self.load is None

    def refs(self) -> list[Any]:
        return [ref for ref in (self.placed, self.load, self.health, *self.calls) if ref is not None]


class RayCrew:
    """Actors of `worker_class(rank, name)`, each loaded with `config`."""

    def __init__(
        self, worker_class: type, config: Any, shape: Shape, on_ray: Callable[[], None] = lambda: None
    ) -> None:
        """`on_ray` is called once Ray is up: signal handlers must be set after it, since Ray overwrites SIGTERM's."""
        self._class, self._config, self._shape, self._on_ray = worker_class, config, shape, on_ray
        kind = "gpu" if shape.use_gpus else "cpu"
        self._seats = [Seat(rank, f"{kind}{rank}") for rank in range(shape.num_workers)]
        self._events: list[Event] = []
        self._actor_class: Any = None
        self._nodes_at = 0.0

    def start(self) -> None:
        """Start or join Ray and ask for the actors. Raises UserError if the cluster has fewer GPUs than wanted."""
        start_ray(self._shape)
        self._on_ray()
        self._actor_class = actor_class(self._class, self._shape)
        for seat in self._seats:
            self._start(seat)

    def free(self, unanswered: int) -> int:
        """Slots of ready workers; while others load for the first time, none takes more than its even share.

        Otherwise the first to be ready would take a short run for itself. A replacement is not waited for.
        """
        slots = self._shape.slots
        if any(seat.num_starts == 1 and not seat.ready for seat in self._seats):
            slots = min(slots, -(-unanswered // len(self._seats)))
        return sum(max(0, slots - len(seat.calls)) for seat in self._seats if seat.ready)

    def submit(self, work: Work) -> None:
        seat = min((seat for seat in self._seats if seat.ready), key=lambda seat: len(seat.calls))
        if not seat.calls:
            seat.moved = time.monotonic()
        seat.calls[seat.actor.solve.options(concurrency_group="work").remote(work)] = work

    def ask_health(self) -> None:
        for seat in self._seats:
            if seat.ready and seat.health is None:
                seat.health = seat.actor.health.options(concurrency_group="hb").remote()

    def wait(self, timeout: float) -> list[Event]:
        self._check_nodes()
        self._check_stillness()
        for seat in self._seats:
            if seat.actor is None and time.monotonic() >= seat.start_at:
                self._start(seat)
        owners = {ref: seat for seat in self._seats for ref in seat.refs()}
        if not owners:
            time.sleep(timeout)
        elif ray.wait(list(owners), num_returns=1, timeout=timeout)[0]:
            for ref in ray.wait(list(owners), num_returns=len(owners), timeout=0)[0]:
                self._collect(owners[ref], ref)
        events, self._events = self._events, []
        return events

    def _check_nodes(self) -> None:
        """Raises WorkersLost where no node is left: nobody answers, and no replacement would ever come."""
        if time.monotonic() < self._nodes_at:
            return
        self._nodes_at = time.monotonic() + NODES_SECONDS
        if not any(node["Alive"] for node in ray.nodes()):
            raise WorkersLost("Ray's node is gone (one of its own processes died), and no worker can be started on it")

    def _check_stillness(self) -> None:
        """Give workers up that stand still. In a cluster of others' waiting for a place is no fault."""
        joined = ray_address() != LOCAL
        for seat in self._seats:
            busy = seat.calls or (seat.load is not None and not (joined and seat.placed is not None))
            if busy and time.monotonic() - seat.moved > STILL_SECONDS:
                doing = "answer a problem" if seat.ready else "load the model"
                self._down(seat, TimeoutError(f"it began to {doing} and did not get on for {STILL_SECONDS:.0f} s"))

    def close(self) -> None:
        ray.shutdown()

    def _start(self, seat: Seat) -> None:
        seat.num_starts += 1
        name = seat.name if seat.num_starts == 1 else f"{seat.name}-{seat.num_starts}"
        seat.actor = self._actor_class.options(name=name).remote(seat.rank, seat.name)
        seat.asked = seat.moved = time.monotonic()
        seat.placed = seat.actor.__ray_ready__.remote()
        seat.load = seat.actor.load.options(concurrency_group="work").remote(self._config)

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
            seat.health = None
            if answer.get("steps") != seat.steps:
                seat.steps, seat.moved = answer.get("steps"), now
            self._events.append(Health(seat.name, answer))
            return
        seat.moved = now
        if ref == seat.placed:
            seat.placed = None
        elif ref == seat.load:
            seat.load, seat.failed_starts = None, 0
            self._events.append(Ready(seat.name, now - seat.asked))
        else:
            self._events.append(Done(seat.name, seat.calls.pop(ref), answer))

    def _raised(self, seat: Seat, ref: Any, error: RayTaskError) -> None:
        """The worker's own code raised; a problem may do that, loading and health may not."""
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, UserError) and ref == seat.load:
            raise UserError(str(cause)) from error
        if ref in seat.calls:
            self._events.append(Raised(seat.name, seat.calls.pop(ref), f"{type(cause).__name__}: {cause}"))
        else:
            self._down(seat, error)

    def _down(self, seat: Seat, error: Exception) -> None:
        """Vacate the seat and plan a replacement. Raises WorkersLost after MAX_FAILED_STARTS loads that failed."""
        reason = str(error).strip()
        ray.kill(seat.actor)
        if seat.load is not None:
            seat.failed_starts += 1
            if seat.failed_starts >= MAX_FAILED_STARTS:
                raise WorkersLost(f"worker {seat.name} could not start {seat.failed_starts} times: {reason}") from error
        self._events.append(Died(seat.name, list(seat.calls.values()), reason))
        first, longest = BACK_OFF_SECONDS
        seat.start_at = time.monotonic() + min(longest, first * 2**seat.failed_starts)
        seat.actor = seat.placed = seat.load = seat.health = None
        seat.calls = {}


def start_ray(shape: Shape) -> None:
    """Join the cluster of RAY_ADDRESS or start a local one, and make sure that it has the GPUs.

    Raises UserError for what the user can mend, WorkersLost where Ray does not come up.
    """
    address = ray_address()
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))}
    if not shape.use_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    check_address()
    local: dict[str, Any] = {}
    if address == LOCAL:  # a driver that joins a cluster must not pass these
        for name, value in HEALTH_CHECK.items():
            os.environ.setdefault(f"RAY_health_check_{name}", str(value))
        local = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": shape.dashboard}
    mask = os.umask(0o077)  # nobody else may read Ray's token and its logs
    try:
        context = ray.init(
            address=address,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            configure_logging=False,
            job_config=JobConfig(metadata={"job_name": shape.job_name}, runtime_env={"env_vars": environment}),
            **local,
        )
    except ConnectionError as error:
        raise UserError(f"No Ray cluster answers at RAY_ADDRESS={address}; start it or unset the variable.") from error
    except OSError as error:
        raise UserError(
            f"Ray cannot start ({error}); it keeps its token in ~/.ray (HOME) and its sockets and logs in /tmp/ray "
            "(RAY_TMPDIR): set these variables to directories that can be written."
        ) from error
    except Exception as error:  # Ray raises bare ones where a process of its own does not come up
        raise WorkersLost(f"Ray did not start: {error}") from error
    finally:
        os.umask(mask)
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if shape.use_gpus and num_gpus < shape.num_workers:
        ray.shutdown()
        raise UserError(
            f"POWERSAMPLE_NUM_GPUS asks for {shape.num_workers} GPUs and Ray finds {num_gpus}; ask for at most these."
        )
    if place := context.dashboard_url:
        print(invitation(place), file=sys.stderr)


def ray_address() -> str:
    """Where Ray is to be found; LOCAL for one of our own."""
    return os.environ.get("RAY_ADDRESS") or LOCAL


def check_address() -> None:
    """Raises UserError if nothing listens at RAY_ADDRESS; Ray itself would go on trying for minutes."""
    address = ray_address()
    if address in (LOCAL, "auto"):
        return  # these name no place
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"RAY_ADDRESS={address} is no address; write it as HOST:PORT, or unset the variable.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"No Ray cluster answers at RAY_ADDRESS={address} ({error}); start it, or unset the variable."
        ) from error


def actor_class(worker_class: type, shape: Shape) -> Any:
    """The worker as an actor class. Group sizes are fixed here: a group below `slots` would cap the batch."""
    cpus = ray.cluster_resources().get("CPU", 1.0)
    # At most one CPU each, so that every actor finds a node; Ray counts in 1/10,000, rounded down here so that all fit.
    share = min(1.0, int(cpus / shape.num_workers * 10_000) / 10_000)
    options: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0}
    if not shape.use_gpus:
        options = {"num_cpus": share}
    options |= {"max_restarts": 0, "max_task_retries": 0, "concurrency_groups": {"work": shape.slots, "hb": 2}}
    return ray.remote(**options)(worker_class)
