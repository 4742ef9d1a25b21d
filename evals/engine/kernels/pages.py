"""Kernels that write keys and values to their pages and copy whole pages, in one launch each."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from evals.engine.kv_cache import PAGE

OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}
"""Set explicitly because Triton's default depends on its version, and warns before it changes."""


def write(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, write_at: Tensor) -> None:
    """Store `k` and `v` [N, K, D] (last dimension contiguous) in `k_pages` and `v_pages` [P, K, PAGE, D].

    `write_at` int64 [N] is page * PAGE + offset; a token with one below 0 is skipped. No two tokens of a call share
    one, except on the scratch page.
    """
    tokens, kv_heads, dim = k.shape
    constants: dict[str, Any] = OPTIONS | {
        "KV_HEADS": kv_heads, "DIM": dim, "WIDTH": triton.next_power_of_2(dim), "PAGE": PAGE, "num_warps": 1
    }  # fmt: skip
    write_token[tokens, kv_heads](
        k, v, k_pages, v_pages, write_at, k.stride(0), k.stride(1), v.stride(0), v.stride(1), **constants
    )


@triton.jit
def write_token(
    k_ptr, v_ptr, k_pages, v_pages, write_at, k_row, k_head, v_row, v_head,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Store one token's key and value of one head; grid (N, K)."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.load(write_at + token).to(tl.int64)
    dim = tl.arange(0, WIDTH)
    mask = dim < tl.where(place >= 0, DIM, 0)
    place = tl.maximum(place, 0)
    at = ((place // PAGE * KV_HEADS + head) * PAGE + place % PAGE) * DIM + dim
    k = tl.load(k_ptr + token * k_row + head * k_head + dim, mask=mask, other=0.0)
    v = tl.load(v_ptr + token * v_row + head * v_head + dim, mask=mask, other=0.0)
    tl.store(k_pages + at, k.to(k_pages.dtype.element_ty), mask=mask)
    tl.store(v_pages + at, v.to(v_pages.dtype.element_ty), mask=mask)


def copy_pages(cache: Tensor, pairs: Tensor) -> None:
    """Copy pages inside `cache` [2, layers, pages, heads, PAGE, head_dim], contiguous, in the order of `pairs`.

    `pairs` int64 [n, 2] holds (from, to) on the device; a pair with a `from` below 0 is skipped, so that the shape can
    stay fixed. In order: a page may be written after an earlier pair has read it. Every program has one piece of every
    page to itself and takes the pairs one by one, so that half the bytes of a gather and a scatter move.
    """
    layers, num_pages = cache.shape[0] * cache.shape[1], cache.shape[2]
    size = cache[0, 0, 0].numel()
    piece = min(2048, triton.next_power_of_2(size))
    constants: dict[str, Any] = OPTIONS | {"SIZE": size, "PIECE": piece, "num_warps": 4}
    copy_pieces[layers, triton.cdiv(size, piece)](cache, pairs, pairs.shape[0], num_pages * size, **constants)


@triton.jit(do_not_specialize=["count"])
def copy_pieces(cache, pairs, count, layer_stride, SIZE: tl.constexpr, PIECE: tl.constexpr):
    """Copy one piece of the pages in one layer's keys or values; grid (2 * layers, pieces of a page)."""
    layer = cache + tl.program_id(0).to(tl.int64) * layer_stride
    piece = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    for pair in range(0, count):
        source = tl.load(pairs + pair * 2).to(tl.int64)
        target = tl.load(pairs + pair * 2 + 1).to(tl.int64)
        mask = piece < tl.where(source >= 0, SIZE, 0)
        values = tl.load(layer + source * SIZE + piece, mask=mask, other=0.0)
        tl.store(layer + target * SIZE + piece, values, mask=mask)
