"""The random numbers of `evals/rng.py` inside a kernel. Knows nothing of what they are for."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def uniform(seed, problem, sample, move, position):
    """Float64 in [0, 1) of 53 bits; integers of any width, taken modulo 2**64 (seed) and 2**32 (the others)."""
    r0, r1, _, _ = tl.philox(
        seed.to(tl.uint64), problem.to(tl.uint32), sample.to(tl.uint32), move.to(tl.uint32), position.to(tl.uint32)
    )
    high, low = (r0 >> 5).to(tl.float64), (r1 >> 6).to(tl.float64)
    return (high * 67108864.0 + low) * (1.0 / 9007199254740992.0)
