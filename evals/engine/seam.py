"""The function that transformers modules call for attention, and what tells it where it is. Knows no request.

The library hands over queries, keys and values of one packed row of tokens; which pages they belong to is said by the
step, which all attention modules of a model share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evals.engine.attention import Step, attention
from evals.engine.kernel_steps import PromptStep, RowsStep, attend_prompts, attend_rows


class Seat:
    """What the attention modules of a model share that are on one device: the step of the forward pass that runs."""

    step: Step | RowsStep | PromptStep


class SeamError(Exception):
    """An attention module asks for something that this attention does not do; the text says what."""


def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function behind `AttentionInterface`: query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D].

    `module` carries `k_pages`, `v_pages` ([P, K, PAGE, D]) and `seat`.
    """
    if attention_mask is not None:
        raise SeamError("it builds an attention mask of its own")
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    step, pages = module.seat.step, (module.k_pages, module.v_pages)
    how = (scale, sliding_window or 0, softcap or 0.0)
    if isinstance(step, RowsStep):
        mixed = attend_rows(q, k, v, *pages, step.table, step.positions, step.arrivals, *how)
    elif isinstance(step, PromptStep):
        mixed = attend_prompts(q, k, v, *pages, step.write_at, step.table, step.tiles, *how)
    else:
        mixed = attention(q, k, v, *pages, step, *how)
    return mixed[None], None


class Probe(nn.Module):
    """Records what every attention module is called with, in order; stands in for attention in one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.modules_seen: list[nn.Module] = []
        self.shapes: set[tuple[int, int, torch.dtype]] = set()
        self.devices: list[torch.device] = []
        self.windows: set[int] = set()
        self.query_heads: set[int] = set()

    def attention(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Returns zeros. Raises SeamError for what `paged_attention` cannot do."""
        if attention_mask is not None:
            raise SeamError("it builds an attention mask of its own")
        if kwargs.get("s_aux") is not None:
            raise SeamError("its attention has sinks")
        if value.shape != key.shape:
            raise SeamError("its values are not as wide as its keys")
        self.modules_seen.append(module)
        self.devices.append(key.device)
        self.shapes.add((key.shape[1], key.shape[3], key.dtype))
        self.query_heads.add(query.shape[1])
        self.windows.add(kwargs.get("sliding_window") or 0)
        return query.new_zeros(query.transpose(1, 2).shape), None
