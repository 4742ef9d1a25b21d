"""Steps that a CUDA graph can replay, and their attention as operations that a compiled layer takes as a whole.

All that such a step says is read on the device, so that it may change between two replays. Knows no model.
Letters in shapes: N packed tokens, B rows, R runs of prompt tokens, T tiles, W pages of a table row, H query heads,
K key/value heads, D head size, P pages of the pool.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RowsStep(NamedTuple):
    """One token of each of B sequences."""

    token_ids: Tensor
    """[B] int64."""
    positions: Tensor
    """[B] int64."""
    table: Tensor
    """[B, W] int32."""
    arrivals: Tensor
    """int32, zeros between two layers, as many as the largest step of the run has rows times key/value heads."""


class PromptStep(NamedTuple):
    """Runs of consecutive tokens of R sequences, one after another, and padding."""

    token_ids: Tensor
    """[N] int64."""
    positions: Tensor
    """[N] int64."""
    write_at: Tensor
    """[N] int64, page * PAGE + offset; below 0 for padding."""
    table: Tensor
    """[R, W] int32."""
    tiles: Tensor
    """[T, 4] int32, see `kernels.prefill.plan_tiles`; padding has no tokens."""


@torch.library.custom_op("powersample::attend_rows", mutates_args=("k_pages", "v_pages", "arrivals"))
def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, table: Tensor, positions: Tensor,
    arrivals: Tensor, scale: float, window: int, softcap: float,
) -> Tensor:  # fmt: skip
    """Store keys and values [B, K, D] at their positions, then let every query [B, H, D] see its own sequence."""
    from evals.engine.kernels.decode import decode, tuned

    tuning = tuned(arrivals.numel())
    return decode(q, k, v, k_pages, v_pages, table, positions, arrivals, scale, window, softcap, tuning)


@torch.library.custom_op("powersample::attend_prompts", mutates_args=("k_pages", "v_pages"))
def attend_prompts(
    q: Tensor, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, write_at: Tensor, table: Tensor, tiles: Tensor,
    scale: float, window: int, softcap: float,
) -> Tensor:  # fmt: skip
    """Store keys and values [N, K, D], then let every query [N, H, D] see its own sequence up to itself."""
    from evals.engine.kernels.prefill import prefill
    from evals.engine.kernels.write import write

    write(k, v, k_pages, v_pages, write_at)
    return prefill(q, k_pages, v_pages, table, tiles, scale, window, softcap)


@attend_rows.register_fake
@attend_prompts.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape)
