"""Searches for the largest batch that works, in a few probes from an estimate.

    works    try half as much again, up to the limit
    fails    halve; once a size works, bisect between it and the smallest that fails
    end      where that gap is at most a quarter of the size that works, or after five attempts

The first size above the limit counts as one that fails, so that the limit is never exceeded and the one rule ends both.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_ATTEMPTS = 5


def search(start: int, limit: int, probe: Callable[[int], bool], say: Callable[[str], None]) -> int:
    """The largest size that worked, 0 where none did; `probe(size)` is called from `start` on, never above `limit`.

    What the probe raises is passed on. Raises ValueError for a start or limit below 1.
    """
    if min(start, limit) < 1:
        raise ValueError(f"a search from {start} up to {limit} has no sizes to try")
    works, fails, size = 0, limit + 1, min(start, limit)
    say(f"estimated batch size {start}, limit {limit}")
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            say(f"next try: batch size {size}")
        if probe(size):
            works = size
            say(f"batch size {size}: works")
        else:
            fails = size
            say(f"batch size {size}: out of memory")
        if fails - works <= max(1, works / 4):
            break
        size = (works + fails) // 2 if fails <= limit else min(limit, max(works + 1, works * 3 // 2))
    say(f"using batch size {works}" if works else "no batch size works")
    return works
