"""Memory of a run before there is a device: the reading that planning.py plans from, computed instead of measured.

Knows no device; benchmarks/plan.py compares it with one.
"""

from __future__ import annotations

from evals.config import EngineConfig
from evals.engine.anatomy import FLOAT32, Anatomy
from evals.engine.kv_cache import PAGE, PagePool
from evals.engine.planning import Demand, Reading, SlotPlan

CONTEXT_BYTES = 600 << 20
"""What the CUDA context and the kernels' code take of a GPU that nobody else uses (an estimate)."""
WORKSPACE_BYTES = 64 << 20
"""What cuBLAS keeps: 32 MiB on a Hopper GPU for each of two streams, that of steps and that of captures."""


def demand(anatomy: Anatomy, slots: int | None, max_length: int, sequences: int) -> Demand:
    """What an engine for sequences of at most `max_length` tokens asks for; it keeps them whole, whatever a window."""
    return Demand(slots, sequences, PagePool.pages_for(0, max_length), PAGE * anatomy.kv_token_bytes)


def forecast(anatomy: Anatomy, total: int, rows: int, config: EngineConfig) -> Reading:
    """What `accelerate.rehearse` is to read of `rows` rows on an empty GPU of `total` bytes that has our kernels."""
    return Reading(
        total=total,
        others=CONTEXT_BYTES + WORKSPACE_BYTES,
        weights=anatomy.weight_bytes,
        rows=rows,
        prompts=config.prefill_tokens * anatomy.pass_bytes,
        step=rows * step_bytes(anatomy, config),
    )


def peak(anatomy: Anatomy, reading: Reading, plan: SlotPlan, config: EngineConfig) -> int:
    """Most bytes allocated at once by a run; what it may reserve is the plan's."""
    step = plan.slots * step_bytes(anatomy, config)
    return WORKSPACE_BYTES + reading.weights + plan.parts["K/V"] + max(reading.prompts, step)


def step_bytes(anatomy: Anatomy, config: EngineConfig) -> int:
    """Of one row in a step: its logits, or what its layers hold at once."""
    logit = FLOAT32 if config.float32_logits else anatomy.itemsize
    return max(anatomy.vocabulary * logit, anatomy.pass_bytes)
