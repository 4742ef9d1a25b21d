"""The driver's state of one worker: its actor, the calls that it has not answered, and when it last made progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.workers.pool import Work


class Call(NamedTuple):
    """A problem that was given to the worker."""

    work: Work
    since: float
    """Monotonic seconds."""
    number: int = 0
    """Its `Work.call`."""


@dataclass
class WorkerHandle:
    """One worker: rank and name stay when its actor is replaced; other fields are of the present actor unless noted."""

    rank: int
    name: str
    num_starts: int = 0
    """Starts of all its actors so far."""
    failed_starts: int = 0
    """Starts that failed since the last one that succeeded."""
    start_at: float = 0.0
    """When the next actor may be started (monotonic seconds), while there is none."""
    given_up: bool = False
    """No actor is started any more."""
    missing: bool = False
    """It was reported that Ray has no resources for its actor."""
    load_seconds: float = 0.0
    """Longest load of all its actors; 0 before the first."""
    room: int | None = None
    """Bytes of its device that were free before the first load; None on CPUs."""
    slots: int | None = None
    """Problems that it takes at once; None until it has reported them."""
    actor: Any = None
    node: str | None = None
    """Id of the node on which it runs."""
    requested_at: float = 0.0
    """When it was requested (monotonic seconds)."""
    progressed_at: float = 0.0
    """When it last made progress (monotonic seconds): requested, placed, loaded, first work, a step, an answer."""
    steps: int | None = None
    """Steps of its engine at the last health reading."""
    placement: Any = None
    """Pending call that is answered once its process runs; None afterwards."""
    load: Any = None
    """Pending call of `load`; None afterwards."""
    health: Any = None
    """Pending call of `health`; None while there is none."""
    calls: dict[Any, Call] = field(default_factory=dict)
    """Pending calls of `solve`."""
    cancelled: set[Any] = field(default_factory=set)
    """Pending calls of `solve` that were cancelled: they return at once, and nobody waits for what they return."""

    @property
    def ready(self) -> bool:
        """Whether its actor has loaded."""
        return self.actor is not None and self.load is None

    @property
    def has_loaded(self) -> bool:
        """Whether any of its actors has ever loaded."""
        return self.load_seconds > 0

    def refs(self) -> list[Any]:
        """All pending calls."""
        return [
            ref for ref in (self.placement, self.load, self.health, *self.calls, *self.cancelled) if ref is not None
        ]

    def vacate(self) -> list[Work]:
        """Forget the actor; returns the problems that it had not answered."""
        unanswered = [call.work for call in self.calls.values()]
        self.actor = self.node = self.placement = self.load = self.health = self.steps = self.slots = None
        self.calls, self.cancelled = {}, set()
        return unanswered
