"""Slots from measured memory: the arithmetic, its edges, and the passes that are measured."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.config import AUTO_SLOTS, EngineConfig
from evals.engine.eager_decoder import EagerDecoder
from evals.engine.engine import Engine
from evals.engine.execution import largest_prompts, largest_step, prepare
from evals.engine.model import KeysValues
from evals.sizing.slots import GRAPH_BYTES, Demand, Reading, fewer_slots, plan_slots, plan_unmeasured, table
from evals.types import UserError
from support.tiny_models import make

GIB = 2**30
READING = Reading(total=80 * GIB, others=GIB, weights=15 * GIB, rows=256, prompts=GIB, step=2 * GIB)
DEMAND = Demand(slots=None, sequences=2, pages=50, page_bytes=2 << 20)  # 200 MiB per slot
CONFIG = EngineConfig()


def cost(plan_slots_: int, reading: Reading, demand: Demand, captured: bool = True) -> float:
    """What so many slots take, as the module's formula has it, to be right within a page and a byte."""
    kv = (max(2 * plan_slots_, demand.sequences) * demand.pages + 1) * demand.page_bytes
    share = plan_slots_ / reading.rows
    step = max(reading.step, reading.rows * demand.page_bytes)
    activations = max(reading.prompts * max(1, share), step * share)
    graphs = activations + GRAPH_BYTES if captured else 0
    return reading.others + reading.weights + kv + activations + graphs


def test_a_large_gpu_takes_all_slots_that_pay() -> None:
    plan = plan_slots(READING._replace(total=141 * GIB), DEMAND, CONFIG)
    assert (plan.slots, plan.num_pages, plan.lowered_from) == (256, 2 * 256 * 50 + 1, None)


def test_a_smaller_one_as_many_as_fit() -> None:
    """64 GiB may be used: 16 are gone, 0.25 + 2 x 1 for passes of up to 128 rows, more beyond: 44.75 / 0.1953."""
    plan = plan_slots(READING, DEMAND, CONFIG)
    assert cost(plan.slots, READING, DEMAND) <= 64 * GIB < cost(plan.slots + 1, READING, DEMAND)
    assert 200 < plan.slots < 256
    assert plan.parts["free"] < 220 << 20
    assert plan.parts["reserve"] == 16 * GIB


def test_a_gpu_that_is_half_full() -> None:
    plan = plan_slots(READING._replace(others=41 * GIB), DEMAND, CONFIG)
    assert 20 < plan.slots < 40
    assert sum(plan.parts.values()) == READING.total
    with pytest.raises(UserError) as refusal:
        plan_slots(READING._replace(others=60 * GIB), DEMAND, CONFIG)
    assert str(refusal.value).startswith(
        "Not even one slot fits the GPU: the model's weights take 15.00 GiB, others hold 60.00 GiB, one slot needs "
        "2.45 GiB, and 80% of 80.00 GiB may be used; free the GPU"
    )


def test_a_number_is_an_upper_limit_that_is_lowered_with_a_warning() -> None:
    assert plan_slots(READING, DEMAND._replace(slots=64), CONFIG)[::3] == (64, None)
    plan = plan_slots(READING, DEMAND._replace(slots=2000), CONFIG)
    assert plan == plan_slots(READING, DEMAND, CONFIG)._replace(lowered_from=2000)
    last = table(plan, "cuda:0").splitlines()[-1]
    assert last == f"Warning: 2000 slots (batch_size) do not fit; going on with {plan.slots}."
    assert "Warning" not in table(plan_slots(READING, DEMAND, CONFIG), "cuda:0")


def test_the_target_and_the_way_of_running_count() -> None:
    slots = [
        plan_slots(READING, DEMAND, EngineConfig(target_utilisation=target)).slots for target in (0.3, 0.5, 0.7, 0.9)
    ]
    assert slots == sorted(set(slots))
    assert (
        plan_slots(READING, DEMAND, EngineConfig(execution="eager")).slots > plan_slots(READING, DEMAND, CONFIG).slots
    )
    assert plan_slots(READING, DEMAND, EngineConfig(execution="eager")).parts["graphs"] == 0


def test_a_chain_of_many_sequences_has_room_for_all_of_them() -> None:
    demand = DEMAND._replace(slots=4, sequences=129)
    assert plan_slots(READING, demand, CONFIG).num_pages == 129 * 50 + 1
    with pytest.raises(UserError, match=r"one slot needs .* lower .*sampler\.num_candidates"):
        plan_slots(READING, demand._replace(sequences=1000), CONFIG)


@given(
    total=st.integers(1, 200), others=st.integers(0, 100), weights=st.integers(0, 100), prompts=st.integers(0, 20),
    step=st.integers(0, 20), rows=st.integers(1, 256), pages=st.integers(1, 500), slots=st.integers(1, 2000),
    sequences=st.integers(1, 64), eager=st.booleans(),
)  # fmt: skip
def test_the_largest_number_that_fits(
    total: int, others: int, weights: int, prompts: int, step: int, rows: int, pages: int, slots: int, sequences: int,
    eager: bool,
) -> None:  # fmt: skip
    reading = Reading(total * GIB, others * GIB, weights * GIB, rows, prompts * GIB, step * GIB)
    demand = Demand(slots, sequences, pages, 1 << 19)
    room = int(0.8 * reading.total)
    try:
        plan = plan_slots(reading, demand, EngineConfig(execution="eager" if eager else "auto"))
    except UserError:
        assert cost(1, reading, demand, not eager) > room
        return
    assert plan.slots == slots or cost(plan.slots + 1, reading, demand, not eager) + 2 > room
    assert cost(plan.slots, reading, demand, not eager) <= room
    assert sum(plan.parts.values()) == reading.total
    assert min(plan.parts.values()) >= 0
    assert plan.lowered_from == (slots if plan.slots < slots else None)


def test_the_table_adds_up() -> None:
    lines = table(plan_slots(READING, DEMAND, CONFIG), "cuda:0").splitlines()
    assert re.fullmatch(r"\d+ slots on cuda:0, 80\.00 GiB, of which:", lines[0])
    rows = [re.fullmatch(r"  (.+?) +(\d+\.\d\d) GiB", line) for line in lines[1:]]
    names = ["context and others", "weights", "K/V", "activations", "graphs", "reserve", "free"]
    assert [row and row[1] for row in rows] == names
    assert sum(float(row[2]) for row in rows if row) == pytest.approx(80, abs=0.04)
    assert len({len(line) for line in lines[1:]}) == 1


def test_fewer_slots_by_a_quarter() -> None:
    steps, slots = [64], 64
    while slots:
        steps.append(slots := fewer_slots(slots))
    assert steps == [64, 48, 32, 24, 16, 8, 6, 4, 3, 2, 1, 0]
    assert (fewer_slots(75), fewer_slots(256), fewer_slots(12), fewer_slots(10)) == (56, 192, 8, 7)


def test_nothing_is_measured_on_a_cpu() -> None:
    assert plan_unmeasured(DEMAND, None)[:2] == (AUTO_SLOTS["cpu"], 1001)
    assert plan_unmeasured(DEMAND._replace(slots=3), 7)[:2] == (3, 7)
    on = Engine.build(prepare(make("llama").model), CONFIG, slots=None, max_length=64)
    assert (on.counters().slots, on.counters().kv_pages, on.notes) == (10, 2 * 10 * 4, "")


@pytest.mark.parametrize("max_length", [1, 2, 16, 17, 18, 100])
def test_the_largest_passes_are_passes(max_length: int) -> None:
    """They run on two pages, the scratch page and one that stays as it was."""
    model = make("llama").model
    cache = KeysValues(model.cache_shape, 2, model.device)
    decoder = EagerDecoder(model, cache)
    prompts = largest_prompts(max_length, 130)
    assert sum(len(run.tokens) for run in prompts) == 130
    assert all(run.num_pages <= len(run.pages) for run in prompts)
    decoder.prefill(prompts)
    drawn = decoder.step(largest_step(5, max_length))
    assert [slot.request.key.move for slot, *_ in drawn] == list(range(5))
    assert {slot.position for slot, *_ in drawn} == {max(1, max_length - 1) - 1}
    assert not cache.tensor[:, :, 1].any()
