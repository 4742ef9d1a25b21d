"""Keys and values of a packed pass into their pages, in one launch. Knows no attention."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from evals.engine.kernels.launch import OPTIONS
from evals.engine.kv_cache import PAGE


def write(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, write_at: Tensor) -> None:
    """Store `k` and `v` [N, K, D] (last dimension contiguous) in `k_pages` and `v_pages` [P, K, PAGE, D].

    `write_at` int64 [N] is page * PAGE + offset; a token with one below 0 is skipped. Two tokens of a call never share
    one, except where nobody reads it.
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
    """Grid (N, K)."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(write_at + token).to(tl.int64)
    dim = tl.arange(0, WIDTH)
    mask = dim < tl.where(slot >= 0, DIM, 0)
    slot = tl.maximum(slot, 0)
    at = ((slot // PAGE * KV_HEADS + head) * PAGE + slot % PAGE) * DIM + dim
    k = tl.load(k_ptr + token * k_row + head * k_head + dim, mask=mask, other=0.0)
    v = tl.load(v_ptr + token * v_row + head * v_head + dim, mask=mask, other=0.0)
    tl.store(k_pages + at, k.to(k_pages.dtype.element_ty), mask=mask)
    tl.store(v_pages + at, v.to(v_pages.dtype.element_ty), mask=mask)
