"""Asking the engine for several completions at once. Knows neither what they are for nor how many run at a time."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence

from evals.types import Completion, Drop, Handle, Operation, Submit

Gathering = Generator[list[Operation], tuple[Hashable, Completion] | None, dict[Hashable, Completion]]


def gather(submits: Sequence[Submit], drops: Sequence[Drop] = (), *, hold: bool) -> Gathering:
    """Submit all, then drop, then wait for all: `found = yield from gather(...)` maps tags to completions.

    A parent may be among `drops`: what is submitted keeps the pages that it needs. With `hold` the sequences that
    arrive stay held and are the caller's to drop. Without, each is dropped when the next arrives, the last when the
    chain ends: thus the prompt that all share is not computed again for those that still wait.
    """
    found: dict[Hashable, Completion] = {}
    operations: list[Operation] = [*submits, *drops]
    last: Handle | None = None
    for _ in submits:
        arrival = yield operations
        if arrival is None:
            raise RuntimeError("the engine resumed a chain that waits for completions without one")
        tag, completion = arrival
        found[tag] = completion
        operations = [] if hold or last is None else [Drop(last)]
        last = completion.handle
    return found
