"""The place of one worker, whichever actor holds it at present, and when patience with it ends. Knows no Ray.

Two signs of a hang: no progress at all (no step of the engine, no answer), and one problem that takes far longer than
any before it while the others get on. Both limits are longer than loading, compiling and capturing take.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.crew import Work

LOAD_SECONDS = 1800.0
"""A worker that has not loaded after so long counts as dead."""
STILL_SECONDS = 300.0
"""So does one that neither takes a step nor answers for so long, or for LOADS times as long as its load took."""
LOADS = 3
DEADLINE_SECONDS = 900.0
"""A problem may take so long, or ANSWERS times as long as the slowest answer so far; twice that at its second try."""
ANSWERS = 20
MISSING_SECONDS = 120.0
"""A worker that has no place for so long is said to be missing; it is still welcome."""


class Call(NamedTuple):
    """A problem at the worker, since when (monotonic seconds)."""

    work: Work
    since: float


class Hang(NamedTuple):
    """Why patience has ended, and which of the problems are to blame."""

    reason: str
    blamed: list[Work]


@dataclass
class Seat:
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

    def hang(self, now: float, slowest_answer: float, joined: bool) -> Hang | None:
        """Why its actor counts as hanging at `now`; None while it does not. In a cluster of others' (`joined`) waiting
        for a place is no fault."""
        if not self.ready:
            waits = self.load is None or (joined and self.placed is not None)
            if waits or now - self.moved <= LOAD_SECONDS:
                return None
            return Hang(f"it began to load the model and did not get on for {LOAD_SECONDS:.0f} s", [])
        patience = max(STILL_SECONDS, LOADS * self.load_seconds)
        if self.calls and now - self.moved > patience:
            blamed = [call.work for call in self.calls.values()]
            return Hang(f"it began to answer a problem and did not get on for {patience:.0f} s", blamed)
        deadline = max(DEADLINE_SECONDS, ANSWERS * slowest_answer)
        late = [work for work, since in self.calls.values() if now - since > work.attempt * deadline]
        if not late:
            return None
        names = ", ".join(str(work.problem.problem_id) for work in late)
        return Hang(f"problem {names} was not answered in {deadline:.0f} s", late)

    def is_missing(self, now: float) -> bool:
        """Has its actor waited so long for a place that this should be said?"""
        return self.placed is not None and not self.missing and now - self.asked > MISSING_SECONDS
