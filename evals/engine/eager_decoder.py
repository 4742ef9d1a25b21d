"""The eager decoder: every step is one packed forward pass, launched kernel by kernel, on any device.

The reference for every faster decoder, and the only one on a CPU. A step's integers go to the device in one transfer.
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
from evals.engine.model import KeysValues, Model
from evals.engine.token_sampling import draw


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence that a pass computes; a single token in a decoding step."""

    tokens: Sequence[int]
    start: int
    """Position of the first."""
    pages: Sequence[int]
    """Pages of the sequence, at least as far as these tokens reach."""

    @property
    def positions(self) -> range:
        """Positions of the tokens."""
        return range(self.start, self.start + len(self.tokens))

    @property
    def num_pages(self) -> int:
        """Number of pages that the last token attends to."""
        return (self.start + len(self.tokens) - 1) // PAGE + 1


class Layout(NamedTuple):
    """How the rows of a pass are padded and grouped on one kind of device."""

    row_unit: int
    """Rows are padded to a multiple of this."""
    page_unit: int | None
    """Single tokens are grouped by their pages, rounded up to a multiple of this; None puts all in one group."""
    chunk: int | None
    """Prompts are written in passes of their own, cut at multiples of this many tokens; None packs them together."""

    @property
    def share_unit(self) -> int:
        """Pages of the unit in which prompts are shared: one prompt pass, which writes the same for every request."""
        return (self.chunk or PAGE) // PAGE


def layout(device: torch.device) -> Layout:
    """The layout under which a row's result does not depend on the other rows, where that can be had.

    Measured in float32 on a CPU: a thread's share of a product gives other last bits for 1 to 3 rows than for 4 to 64,
    which agree; so every thread gets a multiple of 4. The group of a row follows from its own length alone. Prompts are
    cut at fixed positions, so that one that is shared in part is written by the same passes as one that is not.
    """
    if device.type != "cpu":
        return Layout(row_unit=1, page_unit=None, chunk=None)
    return Layout(row_unit=4 * torch.get_num_threads(), page_unit=4, chunk=64)


def pack(chunks: Sequence[Chunk], shape: Layout, device: torch.device, logits: bool = True) -> Step:
    """One step of chunks of any lengths: single tokens in attention groups, then padding rows, which write to the
    scratch page; a longer chunk is a group by itself.

    With `logits` the step gives those of every chunk's last token, in the order of `chunks`, then of the padding rows.
    """
    unit = shape.page_unit or max(chunk.num_pages for chunk in chunks)
    singles = sorted((i for i, chunk in enumerate(chunks) if len(chunk.tokens) == 1), key=lambda i: chunks[i].num_pages)
    longs = [i for i, chunk in enumerate(chunks) if len(chunk.tokens) > 1]
    tokens = sum(len(chunk.tokens) for chunk in chunks)
    # up to a number of rows at which products give the same bits per row as at the others
    padding = -tokens % shape.row_unit
    beside = chunks[singles[-1]] if singles else Chunk((0,), 0, (SCRATCH,))  # padding is in its attention group
    packed = [*(chunks[i] for i in singles), *[Chunk((0,), beside.start, (SCRATCH,) * beside.num_pages)] * padding]
    groups = [list(group) for _, group in groupby(packed, key=lambda chunk: -(-chunk.num_pages // unit))]
    groups += [[chunks[i]] for i in longs]
    packed += [chunks[i] for i in longs]
    ends = np.cumsum([len(chunk.tokens) for chunk in packed]) - 1
    place = [*singles, *range(len(chunks), len(chunks) + padding), *longs]
    last = np.empty_like(ends)
    last[place] = ends
    arrays = [
        np.array([token for chunk in packed for token in chunk.tokens]),
        np.array([position for chunk in packed for position in chunk.positions]),
        np.array([at for chunk in packed for at in write_slots(chunk)]),
        last if logits else last[:0],
        *(array for group in groups for array in group_arrays(group, unit)),
    ]
    token_ids, positions, write_at, logits_at, *rest = to_device(arrays, device)
    attention_groups, row = [], 0
    for pages, visible in zip(rest[::2], rest[1::2], strict=True):
        attention_groups.append(AttentionGroup(slice(row, row + visible.numel()), pages, visible))
        row += visible.numel()
    return Step(token_ids[None], positions[None], write_at, attention_groups, logits_at)


def prompt_passes(prompts: Sequence[Chunk], shape: Layout, max_tokens: int) -> list[list[Chunk]]:
    """Passes of at most `max_tokens` tokens that write these prompts; a prompt may share pages that one before writes.

    What a chunk reads of other chunks has been written by an earlier pass.
    """
    passes: list[list[Chunk]] = []
    room, written = 0, set[int]()
    for prompt in prompts:
        size = shape.chunk or max_tokens
        for cut in range(0, len(prompt.tokens), size):
            chunk = Chunk(prompt.tokens[cut : cut + size], prompt.start + cut, prompt.pages)
            read = chunk.pages[: -(-chunk.start // PAGE)]
            if shape.chunk or len(chunk.tokens) > room or not written.isdisjoint(read):
                passes.append([])
                room, written = max_tokens, set()
            passes[-1].append(chunk)
            room -= len(chunk.tokens)
            written.update(chunk.pages[chunk.start // PAGE : chunk.num_pages])
    return passes


def group_arrays(chunks: list[Chunk], unit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Page numbers [G, S / PAGE] and visible keys [G, R] of chunks that form an attention group."""
    width = max(chunk.num_pages for chunk in chunks)
    if len(chunks[0].tokens) == 1:
        width = -(-width // unit) * unit
    pages = [[*chunk.pages[: chunk.num_pages], *[SCRATCH] * (width - chunk.num_pages)] for chunk in chunks]
    return np.array(pages), np.array([[position + 1 for position in chunk.positions] for chunk in chunks])


def write_slots(chunk: Chunk) -> list[int]:
    """Where the keys and values of a chunk's tokens go: page * PAGE + offset."""
    return [chunk.pages[position // PAGE] * PAGE + position % PAGE for position in chunk.positions]


def to_device(arrays: Sequence[NDArray], device: torch.device) -> list[torch.Tensor]:
    """Arrays of 8-byte numbers as tensors, in one transfer."""
    packed = torch.from_numpy(np.concatenate([array.ravel().view(np.int64) for array in arrays])).to(device)
    parts = packed.split([array.size for array in arrays])
    return [
        (part.view(torch.float64) if array.dtype == np.float64 else part).view(array.shape)
        for part, array in zip(parts, arrays, strict=True)
    ]


class EagerDecoder:
    """Decodes by packed passes of the model, waiting for the results of every step."""

    name = "eager"
    idle = None
    """Nothing is enqueued ahead, so that the device waits for the host in every step."""

    def __init__(self, model: Model, cache: KeysValues) -> None:
        self._model, self.cache, self._layout = model, cache, layout(model.device)
        model.attach(cache)

    def open(self, allocations: Sequence[Allocation]) -> None:
        """Copy the pages that new sequences share in part, and clear the others."""
        self.cache.prepare(allocations)

    def prefill(self, chunks: Sequence[Chunk]) -> None:
        """Write the keys and values of these tokens, in one pass."""
        self._model.forward(pack(chunks, self._layout, self._model.device, logits=False))

    def step(self, states: Sequence[DecodeState]) -> list[Drawn]:
        """Draw one token for each of these requests."""
        if not states:
            return []
        device = self._model.device
        chunks = [Chunk((state.token,), state.position, state.pages) for state in states]
        logits = self._model.forward(pack(chunks, self._layout, device))[: len(states)]
        exclude = np.array([state.exclude for state in states])
        top_k = np.array([state.request.top_k for state in states])
        alpha, top_p, uniform = np.array(
            [[state.request.alpha, state.request.top_p, state.uniform()] for state in states], dtype=np.float64
        ).T
        alpha_B, uniform_B, exclude_B, *limits = to_device([alpha, uniform, exclude, top_k, top_p], device)
        if not (top_k.any() or (top_p < 1).any()):
            limits = []
        drawn = draw(logits, alpha_B, uniform_B, exclude_B if (exclude >= 0).any() else None, *limits)
        numbers = torch.stack([drawn.token.double(), drawn.log_q, drawn.log_z]).tolist()
        return [(state, int(token), *rest) for state, token, *rest in zip(states, *numbers, strict=True)]
