"""Attention over pages: the function that transformers calls, in plain products and by our kernels.

The library hands over queries, keys and values of one packed row of tokens; the step, which all attention modules of a
model share, says which pages they belong to: `Step` for plain products on any device, `RowsStep` and `PromptStep`
for kernels that a CUDA graph replays, whose tensors are all read on the device alone.

Letters in shapes: N packed tokens, G sequences of an attention group, R query rows of each or chunks of prompts, B
rows, T tiles, W pages of a table row, H query heads, K key/value heads, S keys (a multiple of PAGE), D head size, P
pages of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evals.engine.kv_cache import PAGE


@dataclass(eq=False)
class AttentionGroup:
    """Query rows of the same shape: G sequences with the same number of pages, R consecutive tokens of each."""

    rows: slice
    """The G * R packed tokens, sequence by sequence."""
    pages: Tensor
    """[G, S / PAGE] page numbers, padded with the scratch page."""
    visible: Tensor
    """[G, R] number of keys that each query may see: its position + 1."""
    _masks: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict, init=False)
    _gather: dict[int, Tensor] = field(default_factory=dict, init=False)

    def to(self, device: torch.device) -> AttentionGroup:
        """The same group on another device."""
        return AttentionGroup(self.rows, self.pages.to(device), self.visible.to(device))

    def mask(self, window: int, dtype: torch.dtype) -> Tensor:
        """[G, 1, 1, R, S], 0 where a key is seen and -inf elsewhere; one tensor for all layers of a window."""
        if (window, dtype) not in self._masks:
            keys = torch.arange(self.pages.shape[1] * PAGE, device=self.pages.device)
            visible = self.visible[:, None, None, :, None]
            hidden = keys >= visible
            if window:
                hidden |= keys < visible - window
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=keys.device)
            self._masks[window, dtype] = zeros.masked_fill_(hidden, -torch.inf)
        return self._masks[window, dtype]

    def gather(self, heads: int) -> Tensor:
        """[G * K * S / PAGE] rows of a [P * K, PAGE * D] view of the pool."""
        if heads not in self._gather:
            head = torch.arange(heads, device=self.pages.device)
            self._gather[heads] = (self.pages[:, None, :] * heads + head[:, None]).flatten()
        return self._gather[heads]


@dataclass(eq=False)
class Step:
    """One packed forward pass: tokens, where their keys and values go, and which keys each of them sees."""

    token_ids: Tensor
    """[1, N] int64."""
    positions: Tensor
    """[1, N] int64."""
    write_at: Tensor
    """[N] place of each token's keys and values: page * PAGE + offset."""
    groups: list[AttentionGroup]
    """Attention groups that cover the N tokens in order."""
    logits_at: Tensor
    """Indices of the tokens whose logits are wanted; may be empty."""
    _rows: dict[int, Tensor] = field(default_factory=dict, init=False)
    _copies: dict[torch.device, Step] = field(default_factory=dict, init=False)

    def on(self, device: torch.device) -> Step:
        """The same step for the layers on `device`, copied there once."""
        if device == self.token_ids.device:
            return self
        if device not in self._copies:
            inputs = self.token_ids.to(device), self.positions.to(device), self.write_at.to(device)
            self._copies[device] = Step(*inputs, [group.to(device) for group in self.groups], self.logits_at.to(device))
        return self._copies[device]

    def write_rows(self, heads: int) -> Tensor:
        """[N * K] rows of a [P * K * PAGE, D] view of the pool."""
        if heads not in self._rows:
            page, offset = self.write_at // PAGE, self.write_at % PAGE
            head = torch.arange(heads, device=page.device)
            self._rows[heads] = ((page[:, None] * heads + head) * PAGE + offset[:, None]).flatten()
        return self._rows[heads]


def attention(
    q: Tensor, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, step: Step, scale: float, window: int, cap: float
) -> Tensor:
    """Store keys and values [N, K, D] of a step's tokens; returns each query's attention [N, H, D] to its own keys.

    `k_pages` and `v_pages` [P, K, PAGE, D]; `window` 0 and `cap` 0 mean none.
    """
    for pages, states in ((k_pages, k), (v_pages, v)):
        heads, dim = states.shape[1:]
        pages.view(-1, dim).index_copy_(0, step.write_rows(heads), states.reshape(-1, dim))
    q = q * scale
    outputs = [attend(q[group.rows], k_pages, v_pages, group, window, cap) for group in step.groups]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def attend(q: Tensor, k_pages: Tensor, v_pages: Tensor, group: AttentionGroup, window: int, softcap: float) -> Tensor:
    """Attention of the scaled queries [G * R, H, D] of a group to the keys that each may see: [G * R, H, D].

    The softmax runs in float32. A row's result depends on its own pages alone: measured in float32 on a CPU, batched
    products give the same bits for every number of sequences.
    """
    num, (length, heads, dim) = group.pages.shape[0], q.shape
    rows, kv_heads = length // num, k_pages.shape[1]
    sharing = heads // kv_heads  # query heads that share a key/value head
    q = q.reshape(num, rows, kv_heads, sharing, dim).permute(0, 2, 3, 1, 4).reshape(num * kv_heads, sharing * rows, dim)
    keys, values = (
        pages.view(-1, PAGE * dim).index_select(0, group.gather(kv_heads)).view(num * kv_heads, -1, dim)
        for pages in (k_pages, v_pages)
    )
    scores = torch.bmm(q, keys.mT)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(num, kv_heads, sharing, rows, -1)
    scores += group.mask(window, scores.dtype)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
    mixed = torch.bmm(weights.view(num * kv_heads, sharing * rows, -1), values)
    return mixed.view(num, kv_heads, sharing, rows, dim).permute(0, 3, 1, 2, 4).reshape(length, heads, dim)


class RowsStep(NamedTuple):
    """A decoding step for the kernels: one token of each of B sequences."""

    token_ids: Tensor
    """[B] int64."""
    positions: Tensor
    """[B] int64."""
    table: Tensor
    """[B, W] int32 page numbers."""
    arrivals: Tensor
    """int32, zeros between two layers, as many as the largest step of the run has rows times key/value heads."""


class PromptStep(NamedTuple):
    """A prompt pass for the kernels: chunks of R sequences, one after another, and padding."""

    token_ids: Tensor
    """[N] int64."""
    positions: Tensor
    """[N] int64."""
    write_at: Tensor
    """[N] int64, page * PAGE + offset; below 0 for padding."""
    table: Tensor
    """[R, W] int32 page numbers."""
    tiles: Tensor
    """[T, 4] int32, see `kernels.prefill.plan_tiles`; padding has no tokens."""


@torch.library.custom_op("powersample::attend_rows", mutates_args=("k_pages", "v_pages", "arrivals"))
def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, table: Tensor, positions: Tensor,
    arrivals: Tensor, scale: float, window: int, softcap: float,
) -> Tensor:  # fmt: skip
    """Store keys and values [B, K, D] at their positions; returns each query's attention [B, H, D] to its own keys."""
    from evals.engine.kernels.decode import decode, tuned

    tuning = tuned(arrivals.numel())
    return decode(q, k, v, k_pages, v_pages, table, positions, arrivals, scale, window, softcap, tuning)


@torch.library.custom_op("powersample::attend_prompts", mutates_args=("k_pages", "v_pages"))
def attend_prompts(
    q: Tensor, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, write_at: Tensor, table: Tensor, tiles: Tensor,
    scale: float, window: int, softcap: float,
) -> Tensor:  # fmt: skip
    """Store keys and values [N, K, D]; returns the attention [N, H, D] of each query to its sequence up to itself."""
    from evals.engine.kernels.pages import write
    from evals.engine.kernels.prefill import prefill

    write(k, v, k_pages, v_pages, write_at)
    return prefill(q, k_pages, v_pages, table, tiles, scale, window, softcap)


@attend_rows.register_fake
@attend_prompts.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape)


OWN_MASK = "it builds an attention mask of its own"


class StepHolder:
    """Holds the step of the current forward pass for all attention modules of a model."""

    step: Step | RowsStep | PromptStep


class AttentionError(Exception):
    """An attention module asks for something that this attention cannot do; the text says what."""


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

    `module` carries `k_pages`, `v_pages` ([P, K, PAGE, D]) and `step_holder`.
    """
    if attention_mask is not None:
        raise AttentionError(OWN_MASK)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    step, pages = module.step_holder.step, (module.k_pages, module.v_pages)
    how = (scale, sliding_window or 0, softcap or 0.0)
    if isinstance(step, RowsStep):
        mixed = attend_rows(q, k, v, *pages, step.table, step.positions, step.arrivals, *how)
    elif isinstance(step, PromptStep):
        mixed = attend_prompts(q, k, v, *pages, step.write_at, step.table, step.tiles, *how)
    else:
        mixed = attention(q, k, v, *pages, step.on(q.device), *how)
    return mixed[None], None


class Probe:
    """Stands in for attention in one forward pass, and records what every attention module is called with, in order."""

    def __init__(self) -> None:
        self.modules: list[Any] = []
        self.devices: list[torch.device] = []
        self.shapes: set[tuple[int, int, torch.dtype, int]] = set()
        """Heads, size and type of keys, and query heads."""
        self.windows: set[int] = set()

    def attention(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Record a call and return zeros. Raises AttentionError for what `paged_attention` cannot do."""
        if attention_mask is not None:
            raise AttentionError(OWN_MASK)
        if kwargs.get("s_aux") is not None:
            raise AttentionError("its attention has sinks")
        if value.shape != key.shape:
            raise AttentionError("its values are not as wide as its keys")
        self.modules.append(module)
        self.devices.append(key.device)
        self.shapes.add((key.shape[1], key.shape[3], key.dtype, query.shape[1]))
        self.windows.add(kwargs.get("sliding_window") or 0)
        return query.new_zeros(query.transpose(1, 2).shape), None
