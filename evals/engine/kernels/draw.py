"""Kernels that draw tokens with log q and log Z in one pass over the logits, as `token_sampling.draw` does.

Two phases: `partials` takes the largest logit and two sums of exponentials of every chunk of the vocabulary (float32);
`finish` adds them up in float64, finds the chunk in which the cumulative weight passes the uniform, and the token
in it. The excluded token is left out of the chunks and added to the normalisers on its own, so that the rest keeps its
precision. Where q is truncated (top_k_top_p.py), the second sum and the draw are over what is kept. A row's result
depends on its own logits alone.

Letters in shapes: B rows, V vocabulary, C chunks.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from evals.engine.kernels.pages import OPTIONS
from evals.engine.kernels.top_k_top_p import ZERO_BITS, Last, kept, ordered, truncate
from evals.engine.token_sampling import Draw


@triton.jit
def uniform(seed, problem, sample, move, position):
    """A float64 in [0, 1) of 53 bits; integers of any width, taken modulo 2**64 (seed) and 2**32 (the others)."""
    r0, r1, _, _ = tl.philox(
        seed.to(tl.uint64), problem.to(tl.uint32), sample.to(tl.uint32), move.to(tl.uint32), position.to(tl.uint32)
    )
    high, low = (r0 >> 5).to(tl.float64), (r1 >> 6).to(tl.float64)
    return (high * 67108864.0 + low) * (1.0 / 9007199254740992.0)


CHUNK = 4096


def draw(
    logits_BV: Tensor,
    alpha_B: Tensor,
    exclude_B: Tensor,
    seed_B: Tensor,
    key_B3: Tensor,
    position_B: Tensor,
    out: Tensor | None = None,
    chunk: int = CHUNK,
    top_k_B: Tensor | None = None,
    top_p_B: Tensor | None = None,
) -> Draw:
    """Draw one token per row as `token_sampling.draw` does, with the uniform of (seed, key, position), purpose TOKEN.

    `logits_BV` in any float type, rows contiguous; `alpha_B` float64, inf is greedy; `exclude_B` -1 for none; `seed_B`
    int64 (bits of the unsigned seed); `key_B3` and `position_B` int64 or int32; what is [B] is contiguous. `out` int64
    [3, B] holds the result: the Draw is three views of it, the last two as float64, for one transfer of them all.
    With `top_k_B` (int64, 0 for all) and `top_p_B` (float64, 1 for all), both or none, q is truncated.
    Nothing is read on the host. Statistics are good to 2e-5 for alpha up to 10; their error grows as alpha * 1e-7. A
    row with NaN, or in which nothing can be drawn, has a log q of NaN.
    """
    rows, vocabulary = logits_BV.shape
    chunks = triton.cdiv(vocabulary, chunk)
    if out is None:
        out = torch.empty(3, rows, dtype=torch.int64, device=logits_BV.device)
    drawn = Draw(out[0], out[1].view(torch.float64), out[2].view(torch.float64))
    tops, plains, tempereds = torch.empty(3, rows, chunks, dtype=torch.float32, device=logits_BV.device)
    bests = torch.empty(rows, chunks, dtype=torch.int32, device=logits_BV.device)
    truncated, last = False, Last(exclude_B, exclude_B)  # any two tensors: they are not read
    if top_k_B is not None and top_p_B is not None:
        truncated, last = True, truncate(logits_BV, alpha_B, top_k_B, top_p_B)
    constants: dict[str, Any] = OPTIONS | {
        "CHUNK": chunk, "TRUNCATED": truncated, "ZERO_BITS": ZERO_BITS[logits_BV.dtype], "num_warps": 8
    }  # fmt: skip
    all_chunks: dict[str, Any] = {"CHUNKS": max(2, triton.next_power_of_2(chunks))}
    partials[rows, chunks](
        logits_BV, alpha_B, exclude_B, last.order, last.token, tops, plains, tempereds, bests, logits_BV.stride(0),
        vocabulary, chunks, **constants,
    )  # fmt: skip
    finish[(rows,)](
        logits_BV, alpha_B, exclude_B, last.order, last.token, seed_B, key_B3, position_B, tops, plains, tempereds,
        bests, drawn.token, drawn.log_q, drawn.log_z, logits_BV.stride(0), key_B3.stride(0), key_B3.stride(1),
        vocabulary, chunks, **constants, **all_chunks,
    )  # fmt: skip
    return drawn


@triton.jit
def drawable(logits_ptr, v, vocabulary, excluded):
    """Float32 logits of tokens v, -inf for the excluded one and beyond the vocabulary."""
    logits = tl.load(logits_ptr + v, mask=v < vocabulary, other=float("-inf")).to(tl.float32)
    return tl.where(v == excluded, float("-inf"), logits)


@triton.jit
def partials(
    logits_ptr, alpha_ptr, exclude_ptr, last_order, last_token, tops, plains, tempereds, bests, logits_row, vocabulary,
    chunks, CHUNK: tl.constexpr, TRUNCATED: tl.constexpr, ZERO_BITS: tl.constexpr,
):  # fmt: skip
    """Grid (B, C): largest drawable logit m, its first token, sum exp(l - m), and sum exp(alpha * (l - m)) of what is
    kept."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    alpha = tl.load(alpha_ptr + row).to(tl.float32)
    alpha = tl.where(alpha == float("inf"), 1.0, alpha)
    excluded = tl.load(exclude_ptr + row).to(tl.int32)
    v = chunk * CHUNK + tl.arange(0, CHUNK)
    logits = drawable(logits_ptr + row * logits_row, v, vocabulary, excluded)
    top = tl.max(logits, 0)
    shifted = logits - tl.where(top == float("-inf"), 0.0, top)
    at = row * chunks + chunk
    tl.store(tops + at, top)
    tl.store(plains + at, tl.sum(tl.exp(shifted), 0))
    tempered = tl.exp(alpha * shifted)
    if TRUNCATED:
        inside = kept(ordered(logits, ZERO_BITS), v, tl.load(last_order + row), tl.load(last_token + row))
        tempered = tl.where(inside, tempered, 0.0)
    tl.store(tempereds + at, tl.sum(tempered, 0))
    tl.store(bests + at, tl.min(tl.where(logits == top, v, vocabulary), 0))


@triton.jit
def first_above(weights, target, index, LIMIT: tl.constexpr):
    """(first index whose cumulative weight exceeds the target, cumulative weight before it); the last one with weight
    where rounding puts the target beyond them all; 0 where there is none."""
    cumulative = tl.cumsum(weights, 0)
    first = tl.min(tl.where((cumulative > target) & (weights > 0.0), index, LIMIT), 0)
    last = tl.max(tl.where(weights > 0.0, index, 0), 0)
    first = tl.where(first < LIMIT, first, last)
    return first, tl.sum(tl.where(index == first, cumulative - weights, 0.0), 0)


@triton.jit
def finish(
    logits_ptr, alpha_ptr, exclude_ptr, last_order, last_token, seed_ptr, key_ptr, position_ptr, tops, plains,
    tempereds, bests, token_ptr, log_q_ptr, log_z_ptr, logits_row, key_row, key_word, vocabulary, chunks,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, TRUNCATED: tl.constexpr, ZERO_BITS: tl.constexpr,
):  # fmt: skip
    """Draw the token of a row and its statistics from the chunks' sums; grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_row
    key_ptr += row * key_row
    exponent = tl.load(alpha_ptr + row).to(tl.float64)
    greedy = exponent == float("inf")
    alpha = tl.where(greedy, 1.0, exponent)
    excluded = tl.load(exclude_ptr + row).to(tl.int32)
    c = tl.arange(0, CHUNKS)
    at, there = row * chunks + c, c < chunks
    top32 = tl.load(tops + at, mask=there, other=float("-inf"))
    top = top32.to(tl.float64)
    plain = tl.load(plains + at, mask=there, other=0.0).to(tl.float64)
    tempered = tl.load(tempereds + at, mask=there, other=0.0).to(tl.float64)
    best = tl.load(bests + at, mask=there, other=vocabulary)

    # Statistics of the unrestricted distribution: the excluded token is in both sums.
    aside = (excluded >= 0) & (excluded < vocabulary)
    left_out = tl.load(logits_ptr + excluded, mask=aside, other=float("-inf")).to(tl.float64)
    peak = tl.max(top, 0)
    whole = tl.maximum(peak, left_out)
    base = tl.where(whole == float("-inf"), 0.0, whole)
    log_sum = tl.log(tl.sum(plain * tl.exp(top - base), 0) + tl.exp(left_out - base))
    counted = left_out
    if TRUNCATED:
        order = ordered(left_out.to(tl.float32), ZERO_BITS)
        inside = kept(order, excluded, tl.load(last_order + row), tl.load(last_token + row))
        counted = tl.where(inside, left_out, float("-inf"))
    log_total = tl.log(tl.sum(tempered * tl.exp(alpha * (top - base)), 0) + tl.exp(alpha * (counted - base)))

    # The draw: the chunk, then the token in it.
    share = tl.exp(alpha * (top - tl.where(peak == float("-inf"), 0.0, peak)))
    mass = tempered * share
    u = uniform(
        tl.load(seed_ptr + row), tl.load(key_ptr), tl.load(key_ptr + key_word), tl.load(key_ptr + 2 * key_word),
        tl.load(position_ptr + row),
    )  # fmt: skip
    target = u * tl.sum(mass, 0)
    chunk, before = first_above(mass, target, c, CHUNKS)
    chunk_share = tl.max(tl.where(c == chunk, share, 0.0), 0)
    chunk_top = tl.max(tl.where(c == chunk, top32, float("-inf")), 0)
    i = tl.arange(0, CHUNK)
    shifted = drawable(logits_ptr, chunk * CHUNK + i, vocabulary, excluded)
    shifted -= tl.where(chunk_top == float("-inf"), 0.0, chunk_top)
    weights = tl.exp(alpha.to(tl.float32) * shifted).to(tl.float64)
    if TRUNCATED:
        v = chunk * CHUNK + i
        order = ordered(drawable(logits_ptr, v, vocabulary, excluded), ZERO_BITS)
        inside = kept(order, v, tl.load(last_order + row), tl.load(last_token + row))
        weights = tl.where(inside, weights, 0.0)
    rest = (target - before) / tl.where(chunk_share == 0.0, 1.0, chunk_share)
    inner, _ = first_above(weights, rest, i, CHUNK)
    likeliest = tl.min(tl.where(top == peak, best, vocabulary), 0)
    token = tl.where(greedy, tl.minimum(likeliest, vocabulary - 1), chunk * CHUNK + inner)

    chosen = tl.load(logits_ptr + token).to(tl.float64) - base
    log_q = tl.where(greedy, tl.where(chosen == 0.0, 0.0, float("-inf")), alpha * chosen - log_total)
    broken = (peak == float("-inf")) | (log_sum != log_sum) | (tl.sum(mass, 0) == 0.0)
    log_z = log_total - alpha * log_sum
    log_z = tl.where((alpha >= 1.0) & (log_z > 0.0), 0.0, log_z)
    tl.store(token_ptr + row, token.to(tl.int64))
    tl.store(log_q_ptr + row, tl.where(broken, float("nan"), log_q))
    tl.store(log_z_ptr + row, tl.where(greedy, chosen - log_sum, log_z))
