"""The largest batch that works, found in a few probes from an estimate. Knows no model, no device and no process.

    works    try half as much again, up to the limit
    fails    halve; once a size works, bisect between it and the smallest that fails
    end      where that gap is at most a quarter of the size that works, or after five attempts

The first size above the limit counts as one that fails, so that the limit is never exceeded and the one rule ends both.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

SCALES = Path(__file__).with_name("scales.yaml")
MAX_ATTEMPTS = 5
Configuration = TypeVar("Configuration", bound=Hashable)
Say = Callable[[str], None]


class Attempt(NamedTuple):
    """One probe."""

    size: int
    works: bool


class Found(NamedTuple):
    """A search and its result."""

    batch_size: int | None
    """The largest that worked; None where none did."""
    attempts: tuple[Attempt, ...]


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


def next_size(attempts: tuple[Attempt, ...], start: int, limit: int) -> int | None:
    """What to try after these attempts; None where the search is over."""
    works = max((attempt.size for attempt in attempts if attempt.works), default=0)
    fails = min((attempt.size for attempt in attempts if not attempt.works), default=limit + 1)
    if not attempts:
        return min(start, limit)
    if len(attempts) >= MAX_ATTEMPTS or fails == 1 or fails - works <= works / 4 or works + 1 == fails:
        return None
    if not works:
        return fails // 2
    return (works + fails) // 2 if fails <= limit else min(limit, max(works + 1, works * 3 // 2))


def search(start: int, limit: int, probe: Callable[[int], bool], say: Say) -> Found:
    """Probe from `start` on; `probe(size)` is whether a batch of that size works, and is never asked for more than
    `limit`.

    What the probe raises ends the search. Raises ValueError for a start or limit below 1.
    """
    if min(start, limit) < 1:
        raise ValueError(f"a search from {start} up to {limit} has no sizes to try")
    attempts: tuple[Attempt, ...] = ()
    say(f"estimated batch size {start}, limit {limit}")
    while (size := next_size(attempts, start, limit)) is not None:
        if attempts:
            say(f"next try: batch size {size}")
        attempts += (Attempt(size, probe(size)),)
        say(f"batch size {size}: {'works' if attempts[-1].works else 'out of memory'}")
    found = max((attempt.size for attempt in attempts if attempt.works), default=None)
    say("no batch size works" if found is None else f"using batch size {found}")
    return Found(found, attempts)


def search_each(
    configurations: Mapping[Configuration, int],
    limit: int,
    probe: Callable[[Configuration, int], bool],
    say: Say,
) -> dict[Configuration, Found]:
    """A search of its own for every configuration, from the size that it comes with: none learns from another."""
    return {
        configuration: search(
            start,
            limit,
            lambda size, configuration=configuration: probe(configuration, size),
            lambda line, configuration=configuration: say(f"{configuration}: {line}"),
        )
        for configuration, start in configurations.items()
    }
