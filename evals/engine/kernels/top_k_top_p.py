"""Kernel that tells which tokens top_k and top_p keep, without sorting: a threshold per row, found bit by bit.

Tokens are in order of falling logits, among equal ones by their number. What is kept is a beginning of that order, and
is given by its last token: its logit, as an integer in the same order, and its number. The integer is the largest one
at and above which there are `top_k` tokens, or the share `top_p` of the mass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from evals.engine.kernels.pages import OPTIONS

BLOCK = 1024
ZERO_BITS = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}
"""Last bits that are zero in the float32 of every number of a type and need no search."""


class Last(NamedTuple):
    """The last token of each row that is kept, both [B] int64."""

    order: Tensor
    token: Tensor


def truncate(logits_BV: Tensor, alpha_B: Tensor, top_k_B: Tensor, top_p_B: Tensor) -> Last:
    """The last token that `token_sampling.kept` keeps: of the k most probable ones, or of their smallest set of mass p.

    `logits_BV` in any float type, rows contiguous; `alpha_B` and `top_p_B` (1 for all) float64, inf as an alpha counts
    as 1; `top_k_B` int64, 0 for all. Masses are sums of float32 exponentials in float64. Nothing is read on the host.
    """
    rows, vocabulary = logits_BV.shape
    last = Last(*torch.empty(2, rows, dtype=torch.int64, device=logits_BV.device))
    constants: dict[str, Any] = OPTIONS | {"BLOCK": BLOCK, "ZERO_BITS": ZERO_BITS[logits_BV.dtype], "num_warps": 8}
    find_last[(rows,)](
        logits_BV, alpha_B, top_k_B, top_p_B, last.order, last.token, logits_BV.stride(0), vocabulary, **constants
    )
    return last


@triton.jit
def ordered(logits, ZERO_BITS: tl.constexpr):
    """int64 numbers in the order of these float32; both zeros give the same."""
    bits = (logits + 0.0).to(tl.int32, bitcast=True).to(tl.int64)
    bits = tl.where(bits < 0, -2147483648 - bits - 1, bits) + 2147483648
    return bits >> ZERO_BITS


@triton.jit
def kept(order, v, last_order, last_token):
    """Whether tokens v come no later than the last token that is kept."""
    return (order > last_order) | ((order == last_order) & (v <= last_token))


@triton.jit
def weights_of(logits_ptr, start, vocabulary, alpha, top, last_order, last_token, MASS: tl.constexpr,
               BLOCK: tl.constexpr, ZERO_BITS: tl.constexpr):  # fmt: skip
    """(order, weight) of a block of tokens; a weight of 0 for what is not kept."""
    v = start + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + v, mask=v < vocabulary, other=float("-inf")).to(tl.float32)
    order = ordered(logits, ZERO_BITS)
    weight = tl.full([BLOCK], 1.0, tl.float32)
    if MASS:
        weight = tl.exp(alpha * (logits - top))
    inside = (v < vocabulary) & kept(order, v, last_order, last_token)
    return order, tl.where(inside, weight, 0.0).to(tl.float64)


@triton.jit
def shorten(logits_ptr, vocabulary, alpha, top, last_order, last_token, need, MASS: tl.constexpr,
            BLOCK: tl.constexpr, ZERO_BITS: tl.constexpr):  # fmt: skip
    """(order, token) at which the kept beginning reaches a weight of `need`: counts, or with MASS exponentials."""
    threshold = tl.full([], 0, tl.int64)
    for bit in range(32 - ZERO_BITS):
        candidate = threshold + (tl.full([], 1, tl.int64) << (31 - ZERO_BITS - bit))
        total = tl.zeros([BLOCK], tl.float64)
        for start in range(0, vocabulary, BLOCK):
            order, weight = weights_of(
                logits_ptr, start, vocabulary, alpha, top, last_order, last_token, MASS, BLOCK, ZERO_BITS
            )
            total += tl.where(order >= candidate, weight, 0.0)
        threshold = tl.where(tl.sum(total, 0) >= need, candidate, threshold)

    above, each = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for start in range(0, vocabulary, BLOCK):
        order, weight = weights_of(
            logits_ptr, start, vocabulary, alpha, top, last_order, last_token, MASS, BLOCK, ZERO_BITS
        )
        above += tl.where(order > threshold, weight, 0.0)
        each = tl.maximum(each, tl.where(order == threshold, weight, 0.0))
    missing = need - tl.sum(above, 0)
    one = tl.max(each, 0)

    # Of equal logits the first ones, as many as it takes; at least one.
    seen = tl.full([], 0, tl.int64)
    token = tl.full([], 0, tl.int64) + vocabulary
    for start in range(0, vocabulary, BLOCK):
        order, weight = weights_of(
            logits_ptr, start, vocabulary, alpha, top, last_order, last_token, MASS, BLOCK, ZERO_BITS
        )
        equal = ((order == threshold) & (weight > 0.0)).to(tl.int64)
        count = seen + tl.cumsum(equal, 0)
        v = start + tl.arange(0, BLOCK).to(tl.int64)
        reached = (equal > 0) & (count.to(tl.float64) * one >= missing)
        token = tl.minimum(token, tl.min(tl.where(reached, v, vocabulary), 0))
        seen += tl.sum(equal, 0)
    return threshold, token


@triton.jit
def find_last(
    logits_ptr, alpha_ptr, top_k_ptr, top_p_ptr, order_ptr, token_ptr, logits_row, vocabulary,
    BLOCK: tl.constexpr, ZERO_BITS: tl.constexpr,
):  # fmt: skip
    """Find the last token that a row keeps; grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_row
    alpha = tl.load(alpha_ptr + row).to(tl.float32)
    alpha = tl.where(alpha == float("inf"), 1.0, alpha)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    order, token = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64) + vocabulary
    if (top_k > 0) & (top_k < vocabulary):
        need = top_k.to(tl.float64)
        order, token = shorten(
            logits_ptr, vocabulary, alpha, 0.0, order, token, need, tl.constexpr(False), BLOCK, ZERO_BITS
        )
    if top_p < 1.0:
        tops = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in range(0, vocabulary, BLOCK):
            v = start + tl.arange(0, BLOCK)
            tops = tl.maximum(tops, tl.load(logits_ptr + v, mask=v < vocabulary, other=float("-inf")).to(tl.float32))
        top = tl.max(tops, 0)
        total = tl.zeros([BLOCK], tl.float64)
        for start in range(0, vocabulary, BLOCK):
            _, weight = weights_of(
                logits_ptr, start, vocabulary, alpha, top, order, token, tl.constexpr(True), BLOCK, ZERO_BITS
            )
            total += weight
        need = tl.sum(total, 0) * top_p
        order, token = shorten(
            logits_ptr, vocabulary, alpha, top, order, token, need, tl.constexpr(True), BLOCK, ZERO_BITS
        )
    tl.store(order_ptr + row, order)
    tl.store(token_ptr + row, token)
