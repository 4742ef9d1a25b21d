"""Searches for the largest batch that works, in a few probes from an estimate.

    works    try half as much again, up to the limit
    fails    halve; once a size works, bisect between it and the smallest that fails
    end      where that gap is at most a quarter of the size that works, or after five attempts

The first size above the limit counts as one that fails, so that the limit is never exceeded and the one rule ends both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import yaml

SCALES = Path(__file__).with_name("scales.yaml")
MAX_ATTEMPTS = 5


@cache
def scales() -> dict[str, Any]:
    """The tables of scales.yaml."""
    return yaml.safe_load(SCALES.read_text(encoding="utf-8"))


def estimate(base: int, configuration: Mapping[str, float]) -> int:
    """The batch size that a configuration is likely to bear where the plain one bears `base`: int(base * factors).

    From 1 to `base`. Settings without a table change nothing. Raises KeyError where the other value of a ratio is
    missing.
    """
    factor = Fraction(1)
    for name, table in scales()["steps"].items():
        if (value := configuration.get(name)) is not None:
            reached = (scale for bound, scale in table["bounds"].items() if value <= bound)
            factor *= Fraction(str(next(reached, table["more"])))
    for name, whole in scales()["ratios"].items():
        if (value := configuration.get(name)) is not None:
            factor *= Fraction(str(value)) / Fraction(str(configuration[whole]))
    return min(base, max(1, int(base * factor)))


def next_size(tried: Mapping[int, bool], start: int, limit: int) -> int | None:
    """The size to try next, given which sizes worked; None where the search is over."""
    works = max((size for size, works in tried.items() if works), default=0)
    fails = min((size for size, works in tried.items() if not works), default=limit + 1)
    if not tried:
        return min(start, limit)
    if len(tried) >= MAX_ATTEMPTS or fails == 1 or fails - works <= works / 4 or works + 1 == fails:
        return None
    if not works:
        return fails // 2
    return (works + fails) // 2 if fails <= limit else min(limit, max(works + 1, works * 3 // 2))


def search(start: int, limit: int, probe: Callable[[int], bool], say: Callable[[str], None]) -> int | None:
    """The largest size that worked; `probe(size)` is called from `start` on, and never for more than `limit`.

    None where none works. What the probe raises is passed on. Raises ValueError for a start or limit below 1.
    """
    if min(start, limit) < 1:
        raise ValueError(f"a search from {start} up to {limit} has no sizes to try")
    tried: dict[int, bool] = {}
    say(f"estimated batch size {start}, limit {limit}")
    while (size := next_size(tried, start, limit)) is not None:
        if tried:
            say(f"next try: batch size {size}")
        tried[size] = probe(size)
        say(f"batch size {size}: {'works' if tried[size] else 'out of memory'}")
    largest = max((size for size, works in tried.items() if works), default=None)
    say("no batch size works" if largest is None else f"using batch size {largest}")
    return largest
