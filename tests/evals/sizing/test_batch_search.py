"""The batch-size search: the founding tables and scenarios, and what holds for every device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.sizing.batch_search import MAX_ATTEMPTS, estimate, next_size, search


def quiet(_: str) -> None:
    """Drops the lines that the search says."""


@pytest.mark.parametrize(
    ("crops", "expected"),
    [(1, 64), (2, 64), (3, 51), (4, 51), (6, 38), (8, 32), (9, 25), (10, 25), (12, 19), (13, 16), (100, 16)],
)
def test_estimates_by_image_crops(crops: int, expected: int) -> None:
    assert estimate(64, {"max_crops": crops}) == expected


@pytest.mark.parametrize(("top_k", "expected"), [(1, 100), (2, 100), (3, 90), (4, 90), (8, 80), (9, 70), (64, 70)])
def test_estimates_by_experts(top_k: int, expected: int) -> None:
    assert estimate(100, {"moe_top_k": top_k}) == expected


def test_estimates_by_active_blocks_and_by_several_at_once() -> None:
    assert estimate(64, {"active_blocks": 24, "total_blocks": 32}) == 48
    assert estimate(64, {"active_blocks": 40, "total_blocks": 32}) == 64, "never above the base"
    assert estimate(1, {"max_crops": 13}) == 1
    assert estimate(100, {"max_crops": 4, "moe_top_k": 9}) == 56, "0.8 * 0.7 is exact"
    assert estimate(64, {"sampler.alpha": 4, "sampler.top_k": 50}) == 64, "no table, no scale"
    with pytest.raises(KeyError, match="total_blocks"):
        estimate(64, {"active_blocks": 24})


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
        (64, 0, [64, 32, 16, 8, 4], None),
        (3, 0, [3, 1], None),
    ],
    ids=["A", "B", "C", "D", "D fits", "at the limit", "51", "56", "one", "nothing in five", "nothing at all"],
)
def test_scenarios(start: int, largest: int, attempts: list[int], expected: int | None) -> None:
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
    assert found == max((size for size in asked if size <= largest), default=None)
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
    assert next_size({19: True, 20: False}, 19, 64) is None
