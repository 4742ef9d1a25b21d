"""Forecasts the memory of a run without a device, from the sizes of a model that is built without weights.

The result is the reading that sizing/slots.py plans from, computed instead of measured; benchmarks/plan.py compares it
with a device. Letters, per token and decoder layer, in numbers of the model's type: h the hidden size, q that of all
query heads, kv that of the keys and values kept, m that of the widest MLP.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from evals.config import EngineConfig
from evals.engine.checkpoint import make_network
from evals.engine.kv_cache import PAGE, PagePool
from evals.engine.model import Model
from evals.engine.model_support import first_line, model_classes, refusal, unsupported_reason
from evals.sizing.slots import Demand, Reading, SlotPlan

FLOAT32 = 4
CONTEXT_BYTES = 600 << 20
"""What the CUDA context and the kernels' code take on a GPU that no other process uses (an estimate)."""
WORKSPACE_BYTES = 64 << 20
"""What cuBLAS keeps: 32 MiB on a Hopper GPU for each of two streams, that of steps and that of captures."""


class ModelSpec(NamedTuple):
    """The sizes of a model that decide how much memory it takes."""

    parameters: int
    weight_bytes: int
    """Bytes of parameters and buffers."""
    itemsize: int
    """Bytes of a number in the model's type."""
    hidden: int
    mlp: int
    vocabulary: int
    kept: int
    """Numbers of keys and values that all layers keep of one token."""

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of keys and values of one token."""
        return self.itemsize * self.kept

    @property
    def pass_bytes(self) -> int:
        """Most bytes that a forward pass without gradients holds of a token: in an MLP its input, residual and their
        copies, 4h, gate and up as one product, 2m, and two results of size m."""
        return self.itemsize * 4 * (self.hidden + self.mlp)


def model_spec(config: Any, dtype: str, name: str) -> ModelSpec:
    """The sizes of the library's model of this configuration, built on the meta device; `name` is for refusals.

    Raises UserError where the engine cannot run it, or where that cannot be seen without weights.
    """
    classes = model_classes(config)
    stateful = any(getattr(cls, "_is_stateful", False) for cls in classes)
    if not classes or stateful or not getattr(config, "num_attention_heads", None):
        raise refusal(name, type(config).__name__, "it is no text-only causal language model of attention layers alone")
    network = make_network(config, torch.bfloat16, "meta")  # some operations have shape rules for this type alone
    itemsize = getattr(torch, dtype).itemsize
    tensors = [*network.parameters(), *network.buffers()]
    if (reason := unsupported_reason(config)) is not None:
        raise refusal(name, type(network).__name__, reason)
    try:
        shape = Model(network, folder=name).cache_shape  # from here on the attention is the engine's
    except RuntimeError as error:
        reason = f"what it does cannot be seen without weights ({first_line(error)})"
        raise refusal(name, type(network).__name__, reason) from error
    return ModelSpec(
        parameters=network.num_parameters(),
        weight_bytes=sum(t.numel() * (itemsize if t.dtype == torch.bfloat16 else t.itemsize) for t in tensors),
        itemsize=itemsize,
        hidden=config.hidden_size,
        mlp=mlp_size(config),
        vocabulary=config.vocab_size,
        kept=2 * shape.num_layers * shape.num_heads * shape.head_dim,
    )


def mlp_size(config: Any) -> int:
    """Width of the widest MLP that a token goes through: dense, or all the experts that it is sent to."""
    dense = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    experts = getattr(config, "num_experts_per_tok", None) or 0
    return max(dense, experts * (getattr(config, "moe_intermediate_size", None) or dense))


def demand(model_spec: ModelSpec, slots: int | None, max_length: int, sequences: int) -> Demand:
    """The demand of an engine for sequences of at most `max_length` tokens, kept whole whatever a model's windows."""
    return Demand(slots, sequences, PagePool.pages_for(0, max_length), PAGE * model_spec.kv_token_bytes)


def forecast(model_spec: ModelSpec, total: int, rows: int, config: EngineConfig) -> Reading:
    """The reading to expect of `execution.profile_memory` for `rows` rows on an empty GPU of `total` bytes."""
    return Reading(
        total=total,
        others=CONTEXT_BYTES + WORKSPACE_BYTES,
        weights=model_spec.weight_bytes,
        rows=rows,
        prompts=config.prefill_tokens * model_spec.pass_bytes,
        step=rows * step_bytes(model_spec, config),
    )


def peak(model_spec: ModelSpec, reading: Reading, plan: SlotPlan, config: EngineConfig) -> int:
    """Most bytes that a run allocates at once; what it may reserve is in the plan."""
    step = plan.slots * step_bytes(model_spec, config)
    return WORKSPACE_BYTES + reading.weights + plan.parts["K/V"] + max(reading.prompts, step)


def step_bytes(model_spec: ModelSpec, config: EngineConfig) -> int:
    """Bytes of one row in a step: its logits, or what its layers hold at once, if that is more."""
    logit = FLOAT32 if config.float32_logits else model_spec.itemsize
    return max(model_spec.vocabulary * logit, model_spec.pass_bytes)
