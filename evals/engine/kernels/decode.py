"""Kernel for the paged attention of one new token per row, which also writes the token's key and value.

A program owns one split of one row's keys for one key/value head; the query heads that share this head are the rows
of its tile, padded to 16 for the tensor cores, so that every key is read once. The last program of a row to arrive
merges the splits, in their order. Splits are cut from the row's own length alone, so that a row's result is the
same to the bit in any batch, under any page table, and for any other rows.

Letters in shapes: B rows, H query heads, K key/value heads, D head size, P pages of the pool, W pages of a table row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from evals.engine.kernels.pages import OPTIONS
from evals.engine.kv_cache import PAGE


@triton.jit
def capped(scores, softcap, SOFTCAP: tl.constexpr):
    """softcap * tanh(scores / softcap), where there is a cap; tanh(x) = 1 - 2 / (exp(2x) + 1) has no NaN."""
    if SOFTCAP:
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))
    return scores


@triton.jit
def absorb(q, keys, values, seen, top, total, mixed, scale, softcap, SOFTCAP: tl.constexpr):
    """The softmax state after a block: q [R, D], keys, values [S, D] (zero where not `seen`), seen [R, S] or [1, S]."""
    scores = capped(tl.dot(q, tl.trans(keys), input_precision="ieee") * scale, softcap, SOFTCAP)
    scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp(scores - base[:, None])
    shrink = tl.exp(top - base)
    total = total * shrink + tl.sum(weights, 1)
    mixed = mixed * shrink[:, None]
    mixed = tl.dot(weights.to(values.dtype), values, acc=mixed, input_precision="ieee")
    return new_top, total, mixed


@triton.jit
def normalised(total, mixed):
    """[R, D] mixed / total; zeros for a row that saw no key."""
    return mixed / tl.where(total == 0.0, 1.0, total)[:, None]


class Tuning(NamedTuple):
    """Launch settings, which change speed and last bits, never meaning: one value for a whole run."""

    split: int = 256
    """Keys of one program; a power of two, at least 16."""
    block_bytes: int = 16384
    """Keys of one step are as many as fit, between 16 and 64, and no more than `split`, so that no split is empty."""
    num_warps: int = 4
    num_stages: int = 3


DEFAULT = Tuning()
FEW, MANY = 200, 500
"""Rows times key/value heads at which another tuning becomes the fastest."""


def tuned(programs: int) -> Tuning:
    """The fastest tuning measured for this many rows times key/value heads, one for a whole run.

    On an H100 at context 300 and heads of 128: few programs want short splits, to be more; many want small blocks.
    """
    if programs < FEW:
        return Tuning(split=128)
    return DEFAULT if programs < MANY else Tuning(block_bytes=8192)


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    pages: Tensor,
    positions: Tensor,
    arrivals: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    tuning: Tuning = DEFAULT,
) -> Tensor:
    """Store k and v of the token at each row's position, and attend over all keys up to it: [B, H, D].

    `q` [B, H, D], `k` and `v` [B, K, D], the last dimension contiguous; `k_pages` and `v_pages` [P, K, PAGE, D];
    `pages` int32 [B, W]; `positions` int32 or int64 [B], below 0 for a row that is to be left alone (its result is 0);
    `arrivals` int32, at least [B * K] zeros, zero again afterwards, for all layers of a stream alike. `window` 0 and
    `softcap` 0.0 mean none. Nothing is read on the host; shapes and pointers are all that a CUDA graph captures.
    No row may read what another row of the same call writes.
    """
    rows, heads, dim = q.shape
    kv_heads = k_pages.shape[1]
    group, width = heads // kv_heads, max(16, triton.next_power_of_2(dim))
    block = min(64, tuning.split, max(16, tuning.block_bytes // (width * q.element_size())))
    keys = pages.shape[1] * PAGE
    splits = triton.cdiv(min(keys, window + block) if window else keys, tuning.split)
    out = torch.empty(rows, heads, dim, dtype=q.dtype, device=q.device)
    shape = (rows * heads * splits,) if splits > 1 else (1,)
    tops, totals = (torch.empty(shape, dtype=torch.float32, device=q.device) for _ in range(2))
    mixed = torch.empty(*shape, dim, dtype=torch.float32, device=q.device)
    constants: dict[str, Any] = OPTIONS | {
        "KV_HEADS": kv_heads, "GROUP": group, "ROWS": max(16, triton.next_power_of_2(group)), "DIM": dim,
        "WIDTH": width, "PAGE": PAGE, "BLOCK": block, "SPLIT": tuning.split, "SPLITS": splits, "WINDOW": window > 0,
        "SOFTCAP": softcap > 0, "num_warps": tuning.num_warps, "num_stages": tuning.num_stages,
    }  # fmt: skip
    attend_split[rows, kv_heads, splits](
        q, k, v, k_pages, v_pages, pages, positions, out, tops, totals, mixed, arrivals,
        float(scale), float(softcap), window,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), pages.stride(0), **constants,
    )  # fmt: skip
    return out


@triton.jit
def attend_split(
    q_ptr, k_ptr, v_ptr, k_pages, v_pages, pages_ptr, positions_ptr, out_ptr, tops, totals, mixes, arrivals,
    scale, softcap, window, q_row, q_head, k_row, k_head, v_row, v_head, pages_row,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    PAGE: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Attend to one split of a row's keys; grid (B, K, splits of the longest row), those beyond a row's own idle."""
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions_ptr + row).to(tl.int32)
    first = position * 0
    if WINDOW:
        first = tl.maximum(position - window + 1, 0) // BLOCK * BLOCK
    num_splits = tl.maximum((position - first + SPLIT - 1) // SPLIT, 1)
    if split >= num_splits:
        return
    place = row.to(tl.int64)
    dim, r = tl.arange(0, WIDTH), tl.arange(0, ROWS)
    inside = dim < DIM
    tile = (r < GROUP)[:, None] & inside[None, :]
    heads = kv_head * GROUP + r
    q = tl.load(q_ptr + place * q_row + heads[:, None] * q_head + dim[None, :], mask=tile, other=0.0)
    pages_ptr += place * pages_row

    # The new key is the first to be absorbed, from registers, by the program of the last split, which stores it.
    own = (split == num_splits - 1) & (position >= 0)
    mine = dim < tl.where(own, DIM, 0)
    k = tl.load(k_ptr + place * k_row + kv_head * k_head + dim, mask=mine, other=0.0)
    v = tl.load(v_ptr + place * v_row + kv_head * v_head + dim, mask=mine, other=0.0)
    last_page = tl.load(pages_ptr + tl.maximum(position, 0) // PAGE, mask=own, other=0).to(tl.int64)
    target = ((last_page * KV_HEADS + kv_head) * PAGE + tl.maximum(position, 0) % PAGE) * DIM + dim
    tl.store(k_pages + target, k.to(k_pages.dtype.element_ty), mask=mine)
    tl.store(v_pages + target, v.to(v_pages.dtype.element_ty), mask=mine)
    score = capped(tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], 1) * scale, softcap, SOFTCAP)
    top = tl.where(own, score, float("-inf"))
    total = tl.where(own, score * 0.0 + 1.0, 0.0)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32) + v.to(tl.float32)[None, :]

    begin = first + split * SPLIT
    end = tl.minimum(begin + SPLIT, position)
    for start in range(begin, end, BLOCK):
        n = start + tl.arange(0, BLOCK)
        seen = n < end
        if WINDOW:
            seen = seen & (n > position - window)
        page = tl.load(pages_ptr + n // PAGE, mask=seen, other=0).to(tl.int64)
        at = (((page * KV_HEADS + kv_head) * PAGE + n % PAGE) * DIM)[:, None] + dim[None, :]
        mask = seen[:, None] & inside[None, :]
        keys = tl.load(k_pages + at, mask=mask, other=0.0)
        values = tl.load(v_pages + at, mask=mask, other=0.0)
        top, total, mixed = absorb(q, keys, values, seen[None, :], top, total, mixed, scale, softcap, SOFTCAP)

    out_at = (place * KV_HEADS * GROUP + heads)[:, None] * DIM + dim[None, :]
    if SPLITS == 1:
        tl.store(out_ptr + out_at, normalised(total, mixed).to(out_ptr.dtype.element_ty), mask=tile)
    else:
        if num_splits == 1:
            tl.store(out_ptr + out_at, normalised(total, mixed).to(out_ptr.dtype.element_ty), mask=tile)
        else:
            part = ((place * KV_HEADS + kv_head) * SPLITS + split) * GROUP + r
            tl.store(tops + part, top, mask=r < GROUP)
            tl.store(totals + part, total, mask=r < GROUP)
            tl.store(mixes + part[:, None] * DIM + dim[None, :], mixed, mask=tile)
            tl.debug_barrier()  # every thread has stored before one of them says so
            counter = arrivals + place * KV_HEADS + kv_head
            if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == num_splits - 1:
                part = (place * KV_HEADS + kv_head) * SPLITS * GROUP + r
                merged = merge(tops, totals, mixes, part, r < GROUP, dim, tile, num_splits, GROUP, DIM, ROWS, WIDTH)
                tl.store(out_ptr + out_at, merged.to(out_ptr.dtype.element_ty), mask=tile)
                tl.store(counter, 0)


@triton.jit
def merge(
    tops, totals, mixes, part, present, dim, tile, num_splits,
    GROUP: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """[ROWS, WIDTH] normalised sum over the splits, in their order; loads bypass L1: other programs wrote them."""
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    for split in range(0, num_splits):
        at = part + split * GROUP
        top = tl.load(tops + at, mask=present, other=0.0, cache_modifier=".cg")
        mine = tl.load(totals + at, mask=present, other=1.0, cache_modifier=".cg")
        ours = tl.load(mixes + at[:, None] * DIM + dim[None, :], mask=tile, other=0.0, cache_modifier=".cg")
        new = tl.maximum(best, top)
        old_share, share = tl.exp(best - new), tl.exp(top - new)
        total = total * old_share + mine * share
        mixed = mixed * old_share[:, None] + ours * share[:, None]
        best = new
    return normalised(total, mixed)
