"""Decoding by packed passes, kernel by kernel, on any device: plain integers in, one transfer, one forward pass.

The reference for every faster way, and the only one on a CPU. Knows no chain and no page pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from evals.engine.attention import AttentionGroup, Step
from evals.engine.chain_state import DecodeState, Drawn
from evals.engine.kv_cache import PAGE, SCRATCH, Allocation
from evals.engine.model import Model
from evals.engine.sampling import draw


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence; one token for a decode row."""

    tokens: Sequence[int]
    start: int
    """Position of the first."""
    pages: Sequence[int]
    """Pages of the sequence, at least as far as these tokens reach."""

    @property
    def positions(self) -> range:
        return range(self.start, self.start + len(self.tokens))

    @property
    def num_pages(self) -> int:
        """Pages that the last token sees."""
        return (self.start + len(self.tokens) - 1) // PAGE + 1


class Layout(NamedTuple):
    """How rows are laid out on one kind of device."""

    row_unit: int
    """Rows are padded to a multiple of this."""
    page_unit: int | None
    """Single tokens are grouped by their pages, rounded up to a multiple of this; None puts all in one group."""
    chunk: int | None
    """Prompts are written in passes of their own, cut at multiples of this many tokens; None packs them together."""

    @property
    def share_unit(self) -> int:
        """Pages in which prompts can be shared: what a pass of its own writes is the same whoever runs it."""
        return (self.chunk or PAGE) // PAGE


def layout(device: torch.device) -> Layout:
    """The layout under which a row's result does not depend on its company, where that can be had.

    Measured in float32 on a CPU: a thread's share of a product gives other last bits for 1 to 3 rows than for 4 to 160,
    which agree; so every thread gets a multiple of 4. The group of a row follows from its own length alone. Prompts are
    cut at fixed positions, so that one that is shared in part has the very passes of one that is not.
    """
    if device.type != "cpu":
        return Layout(row_unit=1, page_unit=None, chunk=None)
    return Layout(row_unit=4 * torch.get_num_threads(), page_unit=4, chunk=64)


def pack(runs: Sequence[Chunk], shape: Layout, device: torch.device, logits: bool = True) -> Step:
    """One step of ragged runs: single tokens grouped for attention, then padding rows, which write to the scratch page;
    longer runs are a block each.

    With `logits` the last token of every run is asked for, in the order of `runs`, followed by the padding rows.
    """
    unit = shape.page_unit or max(run.num_pages for run in runs)
    singles = sorted((i for i, run in enumerate(runs) if len(run.tokens) == 1), key=lambda i: runs[i].num_pages)
    longs = [i for i, run in enumerate(runs) if len(run.tokens) > 1]
    tokens = sum(len(run.tokens) for run in runs)
    # so many rows that products have a shape whose rows agree with those of other shapes
    padding = -tokens % shape.row_unit
    beside = runs[singles[-1]] if singles else Chunk((0,), 0, (SCRATCH,))  # padding sits in its attention group
    packed = [*(runs[i] for i in singles), *[Chunk((0,), beside.start, (SCRATCH,) * beside.num_pages)] * padding]
    groups = [list(group) for _, group in groupby(packed, key=lambda run: -(-run.num_pages // unit))]
    groups += [[runs[i]] for i in longs]
    packed += [runs[i] for i in longs]
    ends = np.cumsum([len(run.tokens) for run in packed]) - 1
    place = [*singles, *range(len(runs), len(runs) + padding), *longs]
    last = np.empty_like(ends)
    last[place] = ends
    arrays = [
        np.array([token for run in packed for token in run.tokens]),
        np.array([position for run in packed for position in run.positions]),
        np.array([slot for run in packed for slot in write_slots(run)]),
        last if logits else last[:0],
        *(array for group in groups for array in plan_block(group, unit)),
    ]
    token_ids, positions, write_at, logits_at, *rest = to_device(arrays, device)
    blocks, row = [], 0
    for pages, visible in zip(rest[::2], rest[1::2], strict=True):
        blocks.append(AttentionGroup(slice(row, row + visible.numel()), pages, visible))
        row += visible.numel()
    return Step(token_ids[None], positions[None], write_at, blocks, logits_at)


def prompt_passes(prompts: Sequence[Chunk], shape: Layout, max_tokens: int) -> list[list[Chunk]]:
    """Passes of at most `max_tokens` tokens that write these prompts; a prompt may share pages that one before writes.

    What a run reads and other runs write has been written by an earlier pass.
    """
    passes: list[list[Chunk]] = []
    room, written = 0, set[int]()
    for prompt in prompts:
        size = shape.chunk or max_tokens
        for cut in range(0, len(prompt.tokens), size):
            run = Chunk(prompt.tokens[cut : cut + size], prompt.start + cut, prompt.pages)
            read = run.pages[: -(-run.start // PAGE)]
            if shape.chunk or len(run.tokens) > room or not written.isdisjoint(read):
                passes.append([])
                room, written = max_tokens, set()
            passes[-1].append(run)
            room -= len(run.tokens)
            written.update(run.pages[run.start // PAGE : run.num_pages])
    return passes


def plan_block(runs: list[Chunk], unit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Page numbers [G, S / PAGE] and visible keys [G, R] of runs that share a block."""
    width = max(run.num_pages for run in runs)
    if len(runs[0].tokens) == 1:
        width = -(-width // unit) * unit
    pages = [[*run.pages[: run.num_pages], *[SCRATCH] * (width - run.num_pages)] for run in runs]
    return np.array(pages), np.array([[position + 1 for position in run.positions] for run in runs])


def write_slots(run: Chunk) -> list[int]:
    """Where the keys of a run go: page * PAGE + offset."""
    return [run.pages[position // PAGE] * PAGE + position % PAGE for position in run.positions]


def to_device(arrays: Sequence[NDArray], device: torch.device) -> list[torch.Tensor]:
    """Arrays of 8-byte numbers as tensors, in one transfer."""
    packed = torch.from_numpy(np.concatenate([array.ravel().view(np.int64) for array in arrays])).to(device)
    parts = packed.split([array.size for array in arrays])
    return [
        (part.view(torch.float64) if array.dtype == np.float64 else part).view(array.shape)
        for part, array in zip(parts, arrays, strict=True)
    ]


class EagerDecoder:
    """Packed passes of the model; every number that leaves the device is waited for."""

    name = "eager"
    idle = None
    """Nothing is enqueued ahead, so that the device waits for the host in every step."""

    def __init__(self, model: Model) -> None:
        self._model, self._layout = model, layout(model.device)

    def open(self, allocations: Sequence[Allocation]) -> None:
        """Copy the pages that new sequences share in part, and clear the others."""
        assert self._model.cache is not None, "no step without keys and values"
        self._model.cache.prepare(allocations)

    def prefill(self, runs: Sequence[Chunk]) -> None:
        """Keys and values of these tokens, in one pass."""
        self._model.forward(pack(runs, self._layout, self._model.device, logits=False))

    def step(self, slots: Sequence[DecodeState]) -> list[Drawn]:
        """One token for each of these requests."""
        if not slots:
            return []
        device = self._model.device
        runs = [Chunk((slot.token,), slot.position, slot.pages) for slot in slots]
        logits = self._model.forward(pack(runs, self._layout, device))[: len(slots)]
        exclude = np.array([slot.exclude for slot in slots])
        top_k = np.array([slot.request.top_k for slot in slots])
        alpha, top_p, uniform = np.array(
            [[slot.request.alpha, slot.request.top_p, slot.uniform()] for slot in slots], dtype=np.float64
        ).T
        alpha_B, uniform_B, exclude_B, *limits = to_device([alpha, uniform, exclude, top_k, top_p], device)
        if not (top_k.any() or (top_p < 1).any()):
            limits = []
        drawn = draw(logits, alpha_B, uniform_B, exclude_B if (exclude >= 0).any() else None, *limits)
        numbers = torch.stack([drawn.token.double(), drawn.log_q, drawn.log_z]).tolist()
        return [(slot, int(token), *rest) for slot, token, *rest in zip(slots, *numbers, strict=True)]
