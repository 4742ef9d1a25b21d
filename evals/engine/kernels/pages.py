"""Copies of whole pages in all layers, keys and values, in one launch. Knows no sequence."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from evals.engine.kernels.launch import OPTIONS


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
    """Grid (2 * layers, pieces of a page)."""
    layer = cache + tl.program_id(0).to(tl.int64) * layer_stride
    piece = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    for pair in range(0, count):
        source = tl.load(pairs + pair * 2).to(tl.int64)
        target = tl.load(pairs + pair * 2 + 1).to(tl.int64)
        mask = piece < tl.where(source >= 0, SIZE, 0)
        held = tl.load(layer + source * SIZE + piece, mask=mask, other=0.0)
        tl.store(layer + target * SIZE + piece, held, mask=mask)
