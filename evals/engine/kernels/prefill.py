"""Kernel for the paged attention of a prompt pass: chunks of several sequences, packed one after another.

Keys and values of the pass are written first (pages.py). A tile holds consecutive tokens of one sequence, with all
query heads of one key/value head; it goes through the keys in blocks that start at multiples of the block size, and a
block that a token does not see leaves its state as it is. So a token's result does not depend on its tile, its chunk or
the batch. Single tokens are chunks of length 1; decode.py is faster for them.

Letters in shapes: N packed tokens, T tiles, H query heads, K key/value heads, D head size, P pages of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from evals.engine.kernels.decode import absorb, normalised
from evals.engine.kernels.pages import OPTIONS
from evals.engine.kv_cache import PAGE

TILE_ROWS = 64
"""Query rows of a tile: tokens times query heads of a group, the group padded to a power of two."""
BLOCK_BYTES = 16384


def tile_tokens(heads: int, kv_heads: int) -> int:
    """Number of tokens of one tile."""
    return max(1, TILE_ROWS // triton.next_power_of_2(heads // kv_heads))


def plan_tiles(starts: Sequence[int], lengths: Sequence[int], tokens: int) -> NDArray[np.int32]:
    """Tiles [T, 4] of chunks packed one after another: table row, first packed token, number of tokens, first position.

    `starts` are positions of the first tokens; chunk i has row i of the page table; `tokens` is `tile_tokens`.
    """
    tiles, packed = [], 0
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for offset in range(0, length, tokens):
            tiles.append((row, packed + offset, min(tokens, length - offset), start + offset))
        packed += length
    return np.array(tiles, dtype=np.int32).reshape(-1, 4)


def prefill(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    pages: Tensor,
    tiles: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """Attention of every token to the keys of its own sequence up to itself: `q` [N, H, D] -> [N, H, D].

    `q` has a contiguous last dimension; `k_pages` and `v_pages` [P, K, PAGE, D] hold the keys of the pass already;
    `pages` int32 [chunks, W]; `tiles` int32 [T, 4] of `plan_tiles`, a tile of 0 tokens being skipped. Tokens in no tile
    get zeros.
    """
    heads, dim = q.shape[1:]
    kv_heads = k_pages.shape[1]
    group, width = heads // kv_heads, max(16, triton.next_power_of_2(dim))
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    constants: dict[str, Any] = OPTIONS | {
        "KV_HEADS": kv_heads, "GROUP": group, "PADDED": triton.next_power_of_2(group), "DIM": dim, "WIDTH": width,
        "TOKENS": tile_tokens(heads, kv_heads), "PAGE": PAGE, "WINDOW": window > 0, "SOFTCAP": softcap > 0,
        "BLOCK": min(64, max(16, BLOCK_BYTES // (width * q.element_size()))),
        "num_warps": 8 if q.dtype == torch.float32 else 4, "num_stages": 2,
    }  # fmt: skip
    attend_tile[tiles.shape[0], kv_heads](
        q, k_pages, v_pages, pages, tiles, out, float(scale), float(softcap), window,
        q.stride(0), q.stride(1), pages.stride(0), **constants,
    )  # fmt: skip
    return out


@triton.jit
def attend_tile(
    q_ptr, k_pages, v_pages, pages_ptr, tiles_ptr, out_ptr, scale, softcap, window, q_row, q_head, pages_row,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr,
    WIDTH: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Attend by one tile to the keys of one head; grid (T, K)."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    row = tl.load(tiles_ptr + tile * 4).to(tl.int64)
    packed = tl.load(tiles_ptr + tile * 4 + 1).to(tl.int64)
    count = tl.load(tiles_ptr + tile * 4 + 2)
    position = tl.load(tiles_ptr + tile * 4 + 3)
    if count <= 0:
        return
    r, dim = tl.arange(0, TOKENS * PADDED), tl.arange(0, WIDTH)
    token, member = r // PADDED, r % PADDED
    inside = dim < DIM
    mask = ((token < count) & (member < GROUP))[:, None] & inside[None, :]
    heads = kv_head * GROUP + member
    q_at = ((packed + token) * q_row + heads * q_head)[:, None] + dim[None, :]
    q = tl.load(q_ptr + q_at, mask=mask, other=0.0)
    at_position = position + token
    pages_ptr += row * pages_row

    top = tl.full([TOKENS * PADDED], float("-inf"), tl.float32)
    total = tl.zeros([TOKENS * PADDED], tl.float32)
    mixed = tl.zeros([TOKENS * PADDED, WIDTH], tl.float32)
    first = position * 0
    if WINDOW:
        first = tl.maximum(position - window + 1, 0)
    end = position + count
    for start in range(first // BLOCK * BLOCK, end, BLOCK):
        n = start + tl.arange(0, BLOCK)
        real = (n >= first) & (n < end)
        page = tl.load(pages_ptr + n // PAGE, mask=real, other=0).to(tl.int64)
        at = (((page * KV_HEADS + kv_head) * PAGE + n % PAGE) * DIM)[:, None] + dim[None, :]
        keys = tl.load(k_pages + at, mask=real[:, None] & inside[None, :], other=0.0)
        values = tl.load(v_pages + at, mask=real[:, None] & inside[None, :], other=0.0)
        seen = real[None, :] & (n[None, :] <= at_position[:, None])
        if WINDOW:
            seen = seen & (n[None, :] > at_position[:, None] - window)
        top, total, mixed = absorb(q, keys, values, seen, top, total, mixed, scale, softcap, SOFTCAP)

    out_at = ((packed + token) * (KV_HEADS * GROUP) + heads)[:, None] * DIM + dim[None, :]
    tl.store(out_ptr + out_at, normalised(total, mixed).to(out_ptr.dtype.element_ty), mask=mask)
