"""One worker as the driver holds it: its actor, the calls that it has not answered, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.workers.pool import Work


class Call(NamedTuple):
    """A problem at the worker, since when (monotonic seconds)."""

    work: Work
    since: float


@dataclass
class WorkerHandle:
    """Rank and name stay; everything else is of the present actor unless it says otherwise."""

    rank: int
    name: str
    num_starts: int = 0
    """Of all its actors."""
    failed_starts: int = 0
    """In a row."""
    start_at: float = 0.0
    """When the next actor may be started (monotonic seconds), while there is none."""
    given_up: bool = False
    """No actor is started any more."""
    missing: bool = False
    """It was said that there is no place for its actor."""
    load_seconds: float = 0.0
    """Longest load of all its actors; 0 before the first."""
    room: int | None = None
    """Bytes of its device that were free before the first load; None on CPUs."""
    slots: int | None = None
    """Problems at once of its actor; None until it has said."""
    actor: Any = None
    node: str | None = None
    asked: float = 0.0
    moved: float = 0.0
    """When it last got on (monotonic seconds): asked for, placed, loaded, given its first work, a step, an answer."""
    steps: Any = None
    placed: Any = None
    """Pending call that is answered once its process runs; it has no place while others have the device."""
    load: Any = None
    """Pending call of `load`, while it loads."""
    health: Any = None
    calls: dict[Any, Call] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.actor is not None and self.load is None

    @property
    def has_loaded(self) -> bool:
        """Has any of its actors ever loaded?"""
        return self.load_seconds > 0

    def refs(self) -> list[Any]:
        return [ref for ref in (self.placed, self.load, self.health, *self.calls) if ref is not None]

    def vacate(self) -> list[Work]:
        """Forget the actor; returns the problems that it had."""
        lost = [call.work for call in self.calls.values()]
        self.actor = self.node = self.placed = self.load = self.health = self.steps = self.slots = None
        self.calls = {}
        return lost
