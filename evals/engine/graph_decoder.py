"""The decoder for a CUDA device: a whole step is one CUDA graph, and results come one step later.

`step` launches the next token of every row and returns those of the launch before, so that the host decides while the
device works. A row whose request has ended meanwhile costs that one token, which is discarded; it writes to pages that
are still its own, because what the host frees is reused only by work that is enqueued later on the same stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evals.engine import batch_state
from evals.engine.attention import PromptStep, RowsStep
from evals.engine.batch_state import BatchState
from evals.engine.chain_state import DecodeState, Drawn
from evals.engine.device import IdleClock
from evals.engine.eager_decoder import Chunk, write_slots
from evals.engine.kernels.draw import draw
from evals.engine.kernels.pages import copy_pages
from evals.engine.kernels.prefill import plan_tiles, tile_tokens
from evals.engine.kv_cache import PAGE, SCRATCH, Allocation
from evals.engine.model import KeysValues, Model
from evals.types import Handle

TAIL = 8
"""A step computes all rows, or an eighth of them where the rows in use are no more: few are left at the end of a run.
Every further number of rows would have to be compiled and captured while the run waits."""
PROMPT_TOKENS = (256, 1024, 4096)
"""Numbers of tokens that a prompt pass is padded to."""
CHUNKS_PER_TOKEN = 1 / 16
"""Chunks that a prompt pass has room for, per token; a pass of more and shorter chunks takes a larger size."""
RESULTS = 2
"""Host buffers used in turn: one is read while the device fills the other."""


class Launch(NamedTuple):
    """A step that has been launched, and its results."""

    occupied: list[tuple[int, DecodeState]]
    """(row, request) of every row in use."""
    results: Tensor
    """int64 [3, rows] on the host, complete once `done`: token, and the bits of log q and log Z."""
    done: torch.cuda.Event | None
    """None where the work was done at once."""


class GraphDecoder:
    """Decodes rows of requests one token a step, and writes prompts in passes of their own.

    With `graphs` every shape of pass is captured when it is first needed and replayed from then on.
    """

    def __init__(
        self, model: Model, cache: KeysValues, num_rows: int, max_pages: int, name: str, graphs: bool = True
    ) -> None:
        """Room for `num_rows` requests of at most `max_pages` pages each of `cache`.

        Raises ValueError for a model on several devices.
        """
        if model.cache_shape.devices:
            raise ValueError(f"the model lies on {len({model.device, *model.cache_shape.devices})} devices")
        self.name = name
        self._model, self.cache, self._device, self._graphs = model, cache, model.device, graphs
        model.attach(cache)
        self._heights = sorted({num_rows, max(num_rows // TAIL, min(num_rows, TAIL))})
        self._batch = BatchState(num_rows, max_pages)
        self._scalars = self._zeros(batch_state.KEY, num_rows)
        self._keys = self._zeros(num_rows, 3)
        self._table = self._zeros(num_rows, max_pages, dtype=torch.int32)
        self._arrivals = self._zeros(num_rows * model.cache_shape.num_heads, dtype=torch.int32)
        self._drawn = self._zeros(3, num_rows)
        pinned = self._device.type == "cuda"
        self._results = [torch.zeros((3, num_rows), dtype=torch.long, pin_memory=pinned) for _ in range(RESULTS)]
        self._turn = 0
        self._launched: Launch | None = None
        self._tile = tile_tokens(model.num_query_heads, model.cache_shape.num_heads)
        self._prompts: dict[int, Tensor] = {}
        self._captured: dict[tuple, torch.cuda.CUDAGraph] = {}
        self._memory = torch.cuda.graph_pool_handle() if graphs else None
        self.idle = IdleClock(self._device)
        """Clock of the time that the device has waited for the host."""

    def step(self, states: Sequence[DecodeState]) -> list[Drawn]:
        """Launch the next token of these requests; returns the tokens of the launch before, empty if there was none."""
        patch = self._batch.update(states)
        with self.idle.work():
            if patch is not None:
                index, values = (send(part, self._device) for part in patch)
                self._scalars.index_copy_(1, index, values[:, : batch_state.KEY].T)
                self._keys.index_copy_(0, index, values[:, batch_state.KEY : batch_state.TABLE])
                self._table.index_copy_(0, index, values[:, batch_state.TABLE :].int())
            before, self._launched = self._launched, self._launch() if states else None
        if before is None:
            return []
        if before.done is not None:
            before.done.synchronize()
        tokens = before.results[0].tolist()
        log_q, log_z = before.results[1:].view(torch.float64).tolist()
        return [(state, tokens[row], log_q[row], log_z[row]) for row, state in before.occupied]

    def open(self, allocations: Sequence[Allocation]) -> None:
        """Copy the pages that new sequences share in part; their other pages need no clearing, since the kernels read
        nothing that a sequence or its ancestors have not written."""
        copies = [allocation.copy for allocation in allocations if allocation.copy is not None]
        if copies:
            with self.idle.work():
                copy_pages(self.cache.tensor, send(np.array(copies), self._device))

    def prefill(self, chunks: Sequence[Chunk]) -> None:
        """Write the keys and values of these tokens, in one pass that is padded to one of a few sizes."""
        count = max(sum(len(chunk.tokens) for chunk in chunks), round(len(chunks) / CHUNKS_PER_TOKEN))
        size = next(
            (size for size in PROMPT_TOKENS if size >= count), -(-count // PROMPT_TOKENS[-1]) * PROMPT_TOKENS[-1]
        )
        packed = self._pack(chunks, size)
        if size not in self._prompts:
            self._prompts[size] = self._zeros(len(packed))
        with self.idle.work():
            self._prompts[size].copy_(send(packed, self._device))
            self._run(("prompts", size), lambda: self._model.fill(self._unpack(size)))

    def warm_up(self, prefill_tokens: int = PROMPT_TOKENS[-1]) -> None:
        """Compile and capture what an engine needs: prompt passes of every size, steps of every number of rows."""
        for size in {prefill_tokens, *(min(size, prefill_tokens) for size in PROMPT_TOKENS)}:
            self.prefill([Chunk((0,) * PAGE, 0, (SCRATCH,))] * (size // PAGE))
        for height in self._heights:
            self._run(("rows", height, False), lambda height=height: self._advance(height, False))
        self.open([Allocation(Handle(0), (), (), (SCRATCH, SCRATCH))])
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _launch(self) -> Launch:
        """Enqueue one step over as many rows as are in use, and the copy of its results."""
        height = next(height for height in self._heights if height >= self._batch.height)
        truncated = self._batch.truncated
        self._turn = (self._turn + 1) % RESULTS
        results = self._results[self._turn]
        self._run(("rows", height, truncated), lambda: self._advance(height, truncated))
        results.copy_(self._drawn, non_blocking=True)
        done = None
        if self._device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
        return Launch(self._batch.occupied, results, done)

    def _advance(self, height: int, truncated: bool) -> None:
        """Draw one token for the first `height` rows and make it their next input, all on the device."""
        scalars = self._scalars[:, :height]
        token, position = scalars[batch_state.TOKEN], scalars[batch_state.POSITION]
        logits = self._model.logits(RowsStep(token, position, self._table[:height], self._arrivals))
        alpha, top_p = scalars[batch_state.ALPHA].view(torch.float64), scalars[batch_state.TOP_P].view(torch.float64)
        new = draw(
            logits,
            alpha,
            scalars[batch_state.EXCLUDE],
            scalars[batch_state.SEED],
            self._keys[:height],
            position + 1 - scalars[batch_state.ORIGIN],
            self._drawn[:, :height],
            top_k_B=scalars[batch_state.TOP_K] if truncated else None,
            top_p_B=top_p if truncated else None,
        ).token
        ended = (new == scalars[batch_state.EOS : batch_state.KEY]).any(0)
        goes_on = (scalars[batch_state.LIVE] != 0) & ~ended & (position < scalars[batch_state.LIMIT])
        token.copy_(torch.where(goes_on, new, token))  # a frozen row feeds its last token again
        position.add_(goes_on)
        scalars[batch_state.LIVE].copy_(goes_on)
        scalars[batch_state.EXCLUDE].fill_(-1)

    def _run(self, key: tuple, work: Callable[[], None]) -> None:
        """Do `work` on the device: by replaying its graph, captured when first needed, or kernel by kernel."""
        if not self._graphs:
            work()
            return
        if key not in self._captured:
            self._captured[key] = self._capture(work)
        self._captured[key].replay()

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Capture `work` in a graph, after running it once on idle rows for what compiles or allocates at first use."""
        states = (self._scalars, self._keys, self._table)
        kept = [state.clone() for state in states]
        for state in states:
            state.zero_()
        work()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            work()
        for state, values in zip(states, kept, strict=True):
            state.copy_(values)
        return graph

    def _pack(self, chunks: Sequence[Chunk], size: int) -> NDArray[np.int64]:
        """A prompt pass in one array for `_unpack`: tokens, positions, places to write at, page tables, tiles."""
        num_chunks, num_tiles, width = self._prompt_shape(size)
        tokens, table, tiles = np.zeros((3, size)), np.zeros((num_chunks, width)), np.zeros((num_tiles, 4))
        tokens[2] = -1
        filled = np.hstack([[chunk.tokens, chunk.positions, write_slots(chunk)] for chunk in chunks])
        tokens[:, : filled.shape[1]] = filled
        for line, chunk in zip(table, chunks, strict=False):
            line[: chunk.num_pages] = chunk.pages[: chunk.num_pages]
        starts, lengths = [chunk.start for chunk in chunks], [len(chunk.tokens) for chunk in chunks]
        filled_tiles = plan_tiles(starts, lengths, self._tile)
        tiles[: len(filled_tiles)] = filled_tiles
        return np.concatenate([part.astype(np.int64).ravel() for part in (tokens, table, tiles)])

    def _unpack(self, size: int) -> PromptStep:
        """The prompt pass that `_pack` made, as views of its copy on the device."""
        num_chunks, num_tiles, width = self._prompt_shape(size)
        tokens, table, tiles = self._prompts[size].split([3 * size, num_chunks * width, num_tiles * 4])
        token_ids, positions, write_at = tokens.view(3, size)
        return PromptStep(
            token_ids, positions, write_at, table.view(num_chunks, width).int(), tiles.view(num_tiles, 4).int()
        )

    def _prompt_shape(self, size: int) -> tuple[int, int, int]:
        """Chunks, tiles and pages of a chunk that a pass of `size` tokens has room for."""
        num_chunks = max(1, round(size * CHUNKS_PER_TOKEN))
        return num_chunks, num_chunks + size // self._tile, self._table.shape[1]

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)


def send(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copy `array` to the device without waiting; the allocator keeps the pinned copy until the transfer is done."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
