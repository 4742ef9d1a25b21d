"""The batch-size search: the founding document's tables and scenarios, and what holds for every device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.config import EngineConfig
from evals.sizing.slots import Demand, Reading, most_slots, size
from orchestrator.batch_search.batch_size import MAX_ATTEMPTS, search


def quiet(_: str) -> None:
    """Drops the lines that the search says."""


@pytest.mark.parametrize(
    ("base", "factors", "expected"),
    [
        (64, (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.25), (64, 51, 38, 32, 25, 19, 16)),  # 2, 4, ... 12 and more image crops
        (100, (1.0, 0.9, 0.8, 0.7), (100, 90, 80, 70)),  # 2, 4, 8 and more experts per token
        (64, (24 / 32,), (48,)),  # 24 of 32 blocks active
    ],
)
def test_the_founding_estimates_follow_from_the_memory(
    base: int, factors: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    """A configuration that takes 1 / factor of the memory of another gets that share of its batch, rounded down."""
    config, reading = EngineConfig(execution="eager"), Reading(0, 0, 0, rows=1, prompts=0, step=0)
    plain = Demand(slots=base, sequences=2, pages=8, page_bytes=10**6)
    room = (size(reading, plain, config, base) + size(reading, plain, config, base + 1)) // 2
    heavier = [plain._replace(page_bytes=round(plain.page_bytes / factor)) for factor in factors]
    assert tuple(most_slots(reading, one, config, room) for one in heavier) == expected


@pytest.mark.parametrize(
    ("start", "largest", "attempts", "expected"),
    [
        (19, 64, [19, 28, 42, 63], 63),
        (19, 16, [19, 9, 14, 16], 16),
        (19, 23, [19, 28, 23], 23),
        (16, 24, [16, 24, 36, 30], 24),
        (16, 35, [16, 24, 36, 30], 30),
        (64, 64, [64], 64),
        (51, 64, [51, 64], 64),
        (64, 56, [64, 32, 48, 56], 56),
        (1, 1, [1, 2], 1),
        (64, 0, [64, 32, 16, 8, 4], 0),
        (3, 0, [3, 1], 0),
    ],
    ids=[
        "A",
        "B",
        "C",
        "D",
        "D fits",
        "at the limit",
        "51",
        "56",
        "one",
        "nothing in five",
        "nothing at all",
    ],
)
def test_scenarios(start: int, largest: int, attempts: list[int], expected: int) -> None:
    asked: list[int] = []
    assert search(start, 64, lambda size: asked.append(size) or size <= largest, quiet) == expected
    assert asked == attempts


@given(start=st.integers(1, 3000), limit=st.integers(1, 2000), largest=st.integers(0, 3000))
def test_never_above_the_limit_and_never_more_than_five(start: int, limit: int, largest: int) -> None:
    asked: list[int] = []

    def probe(size: int) -> bool:
        asked.append(size)
        return size <= largest

    found = search(start, limit, probe, quiet)
    assert 1 <= len(asked) <= MAX_ATTEMPTS
    assert len(set(asked)) == len(asked), "nothing is tried twice"
    assert max(asked) <= limit
    assert min(asked) >= 1
    assert found == max((size for size in asked if size <= largest), default=0)
    if found and len(asked) < MAX_ATTEMPTS:
        assert min(limit, largest) <= 1.25 * found


def test_the_lines_name_estimate_probes_and_result() -> None:
    lines: list[str] = []
    search(19, 64, lambda size: size <= 23, lines.append)
    assert lines == [
        "estimated batch size 19, limit 64",
        "batch size 19: works",
        "next try: batch size 28",
        "batch size 28: out of memory",
        "next try: batch size 23",
        "batch size 23: works",
        "using batch size 23",
    ]
    search(1, 64, lambda size: False, lines.append)
    assert lines[-1] == "no batch size works"


def test_a_search_without_sizes_is_refused_and_a_broken_probe_is_heard() -> None:
    with pytest.raises(ValueError, match="no sizes"):
        search(19, 0, lambda size: True, quiet)

    def broken(size: int) -> bool:
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="gone"):
        search(19, 64, broken, quiet)
