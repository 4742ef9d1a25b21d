"""Slots that follow a device's memory: fewer while others use it, more when it is free again, the same samples."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from evals.config import EngineConfig
from evals.engine.engine import Engine
from evals.sizing.slots import LOOK_SECONDS, Demand, Reading, SlotAdjuster, SlotPlan, adjusted, fewer_slots, size
from evals.types import Sample
from support.disturbed import KINDS, assert_same, run
from support.tiny_models import Pair, make

MIB = 2**20
CONFIG = EngineConfig(target_utilisation=0.8)
READING = Reading(total=100_000 * MIB, others=500 * MIB, weights=3_000 * MIB, rows=64, prompts=300 * MIB, step=64 * MIB)
DEMAND = Demand(slots=None, sequences=2, pages=40, page_bytes=MIB)
TARGET = 80_000 * MIB


def own(slots: int) -> int:
    return size(READING, DEMAND, CONFIG, slots)


@pytest.mark.parametrize("slots", [1, 10, 200, 256])
def test_nothing_changes_between_the_target_and_half_of_the_reserve(slots: int) -> None:
    for in_use in (TARGET, TARGET + 9_999 * MIB):
        assert adjusted(READING, DEMAND, CONFIG, slots, in_use, busy=True) == slots


@pytest.mark.parametrize("slots", [2, 12, 200, 256])
@pytest.mark.parametrize("over", [10_001, 15_000, 20_000])
def test_slots_are_given_up_until_the_target_holds_or_one_is_left(slots: int, over: int) -> None:
    less = adjusted(READING, DEMAND, CONFIG, slots, TARGET + over * MIB, busy=False)
    assert 1 <= less < slots
    kept = own(slots) - own(less)
    assert kept >= over * MIB or less == 1
    previous = next(n for n in steps_down(slots) if fewer_slots(n) <= less)
    assert previous == slots or own(slots) - own(previous) < over * MIB, "no more than needed"


def steps_down(slots: int) -> Iterator[int]:
    while slots:
        yield slots
        slots = fewer_slots(slots)


def test_slots_come_back_when_their_memory_does() -> None:
    in_use = 3_500 * MIB + own(100)
    assert adjusted(READING, DEMAND, CONFIG, 100, in_use, busy=True) == 256
    others = TARGET - in_use - (own(160) - own(100))  # what they may hold for 160 slots to fit
    assert adjusted(READING, DEMAND, CONFIG, 100, in_use + others, busy=True) == 160
    assert adjusted(READING, DEMAND, CONFIG, 100, in_use, busy=False) == 100
    assert adjusted(READING, DEMAND._replace(slots=120), CONFIG, 100, in_use, busy=True) == 100, "not worth it"
    assert adjusted(READING, DEMAND._replace(slots=134), CONFIG, 100, in_use, busy=True) == 134


def test_it_looks_now_and_then_and_less_often_after_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [0.0], []
    monkeypatch.setattr("evals.sizing.slots.time", SimpleNamespace(monotonic=lambda: now[0]))
    elastic = SlotAdjuster(READING, DEMAND, CONFIG, lambda: looks.append(now[0]) or own(64))
    for _ in range(200):
        now[0] += 0.5
        elastic.wanted(64, 10)
        if now[0] == 45.0:
            elastic.ran_out()
    assert looks == [10.0, 20.0, 30.0, 40.0, 65.0, 85.0]
    assert LOOK_SECONDS == 10.0


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("llama", seed=1)


@pytest.mark.parametrize(
    "kind", [kind if kind == "power" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_samples_are_those_of_an_engine_whose_slots_stay(
    kind: str, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shaking(wanted: list[int]) -> tuple[list[Sample], Engine]:
        """A look before every step, of which these are the outcomes."""
        outcomes = iter(wanted)

        def size_slots(_: Any, config: EngineConfig, demand: Demand, *__: Any) -> tuple[SlotPlan, EngineConfig]:
            return SlotPlan(8, demand.num_pages(8), {}, reading=READING), config

        def outcome(reading: Reading, demand: Demand, _: Any, slots: int, in_use: int, busy: bool) -> int:
            assert (reading, in_use) == (READING, 7)
            return next(outcomes, slots)

        monkeypatch.setattr("evals.sizing.slots.LOOK_SECONDS", 0.0)
        monkeypatch.setattr("evals.sizing.slots.adjusted", outcome)
        monkeypatch.setattr("evals.engine.engine.size_slots", size_slots)
        monkeypatch.setattr("evals.engine.engine.bytes_in_use", lambda device: 7)
        return run(pair, kind, slots=16, count=8)

    calm, _ = shaking([])
    shaken, on = shaking([8, 8, 8, 3, 3, 3, 3, 3, 16, 16, 1, *[1] * 9, 8])
    for one, two in zip(calm, shaken, strict=True):
        assert_same(one, two)
    changes = on.take_slot_changes()
    assert [(change.old, change.new) for change in changes] == [(8, 3), (3, 16), (16, 1), (1, 8)]
    assert changes[0].reason == "others use the GPU's memory"
    assert changes[1].reason == "there is room for more"
    assert on.counters().slots == 8
