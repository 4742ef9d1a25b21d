"""One step of softmax over a stream of keys, shared by the attention kernels. Knows no pages.

The running state of every query row is (top, total, mixed): the largest score, the sum of exp(score - top) and the sum
of exp(score - top) * value, all in float32. Source: Milakov and Gimelshein, Online normalizer calculation for softmax
(2018). A block in which a row sees nothing leaves its state as it is, to the bit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def capped(scores, softcap, SOFTCAP: tl.constexpr):
    """softcap * tanh(scores / softcap), where there is a cap; tanh(x) = 1 - 2 / (exp(2x) + 1) has no NaN."""
    if SOFTCAP:
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))
    return scores


@triton.jit
def absorb(q, keys, values, seen, top, total, mixed, scale, softcap, SOFTCAP: tl.constexpr):
    """The state after a block: q [R, D], keys and values [S, D] (zero where not `seen`), seen [R, S] or [1, S]."""
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
    """[R, D] mixed / total; zeros for a row that saw nothing."""
    return mixed / tl.where(total == 0.0, 1.0, total)[:, None]
