"""Counter-based random numbers: Philox4x32-10 on the host. The one key scheme of the project (DESIGN.md, Random keys).

A uniform is a pure function of (run seed; problem, sample | try << 16, move, position | purpose << 24). Nothing depends on
batch, slot, device, order of arrival or restart. Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

MASK = np.uint64(0xFFFFFFFF)
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
ROUNDS = 10
SHIFT = np.uint64(32)


class Purpose(IntEnum):
    """What a uniform is for; two purposes never share a counter."""

    TOKEN = 0
    COIN = 1
    CUT = 2
    ACCEPT = 3
    RESAMPLE = 4
    PICK = 5


def philox(seed: int, counter: ArrayLike) -> NDArray[np.uint64]:
    """Philox4x32-10. `counter` [..., 4] of 32-bit words, `seed` the 64-bit key; returns [..., 4] 32-bit words."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, dtype=np.uint64), -1, 0)
    k0, k1 = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> SHIFT) ^ c1 ^ k0, p1 & MASK, (p0 >> SHIFT) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1)


def uniforms(seed: int, keys: ArrayLike, positions: ArrayLike, purpose: Purpose = Purpose.TOKEN) -> NDArray[np.float64]:
    """Uniforms in [0, 1) of 53 bits. `keys` [B, 3] (problem, sample | try << 16, move), `positions` [B]; returns [B]."""
    keys, positions = np.asarray(keys, dtype=np.uint64), np.asarray(positions, dtype=np.uint64)
    last = positions | np.uint64(int(purpose) << 24)
    words = philox(seed, np.concatenate([keys, last[..., None]], axis=-1))
    high, low = words[..., 0] >> np.uint64(5), words[..., 1] >> np.uint64(6)
    return (high * np.uint64(1 << 26) + low).astype(np.float64) / float(1 << 53)


def uniform(seed: int, key: tuple[int, int, int], position: int, purpose: Purpose) -> float:
    """One uniform in [0, 1); see `uniforms`."""
    return float(uniforms(seed, [key], [position], purpose)[0])
