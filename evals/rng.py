"""Counter-based random numbers: Philox4x32-10 on the host, under the one key scheme of the project.

A uniform is a pure function of (run seed; problem, sample | try << 16, move, position | purpose << 24). It does not
depend on batch, slot, device, order of arrival or restart. Source: Salmon et al., Parallel Random Numbers: As Easy
as 1, 2, 3 (SC 2011).
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Word = Any  # int or an int64 tensor
MASK, M0, M1, W0, W1 = 0xFFFFFFFF, 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
MULTIPLIERS = np.array([[M0], [M1]], dtype=np.uint64)
MAX_SAMPLES = 1 << 16
"""A sample index and the number of a try have 16 bits each of one word of the counter."""


class Purpose(IntEnum):
    """What a uniform is for; two purposes never share a counter."""

    TOKEN = 0
    COIN = 1
    CUT = 2
    ACCEPT = 3
    RESAMPLE = 4
    PICK = 5


class RandomKey(NamedTuple):
    """What random numbers are drawn for: the run's seed, and three words of the counter."""

    seed: int
    problem: int
    sample: int
    """Index of the sample | number of the try << 16."""
    move: int = 0

    def of(self, move: int, attempt: int = 0) -> RandomKey:
        """The key of a move, and of a try of it."""
        return self._replace(sample=self.sample | attempt << 16, move=move)


def chain_key(seed: int, problem_id: int, sample_index: int) -> RandomKey:
    """The key of a chain, which is that of its move 0. Raises ValueError where a number does not fit its bits."""
    if not (0 <= problem_id < 1 << 32 and 0 <= sample_index < MAX_SAMPLES):
        raise ValueError(f"no random key for problem {problem_id}, sample {sample_index}: a word overflows")
    return RandomKey(seed, problem_id, sample_index)


def philox(seed: Word, c0: Word, c1: Word, c2: Word, c3: Word) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10 of four 32-bit counter words under a 64-bit key.

    Ints and int64 tensors alike; of the latter, products wrap and shifts keep the sign, hence the masks.
    """
    k0, k1 = seed & MASK, seed >> 32 & MASK
    for _ in range(ROUNDS):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> 32 & MASK) ^ c1 ^ k0, p1 & MASK, (p0 >> 32 & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = k0 + W0 & MASK, k1 + W1 & MASK
    return c0, c1, c2, c3


def uniforms(seed: int, keys: ArrayLike, positions: ArrayLike, purpose: Purpose = Purpose.TOKEN) -> NDArray[np.float64]:
    """Uniforms in [0, 1) of 53 bits: `keys` [B, 3] (problem, sample | try << 16, move), `positions` [B] -> [B]."""
    words = np.asarray(keys, dtype=np.uint64)
    last = np.asarray(positions, dtype=np.uint64) | int(purpose) << 24
    even, odd = np.stack([words[..., 0], words[..., 2]]), np.stack(np.broadcast_arrays(words[..., 1], last))
    for round_key in round_keys(seed):  # as `philox`, two words at a time: a call costs more than its numbers
        products = even * MULTIPLIERS
        even, odd = (products >> 32)[::-1] ^ odd ^ round_key, products[::-1] & MASK
    return ((even[0] >> 5) * (1 << 26) + (odd[0] >> 6)) / float(1 << 53)


@lru_cache(maxsize=16)
def round_keys(seed: int) -> NDArray[np.uint64]:
    """[ROUNDS, 2, 1] the key of every round of Philox."""
    bumps = np.arange(ROUNDS, dtype=np.uint64)[:, None] * np.array([W0, W1], dtype=np.uint64)
    first = np.array([seed & MASK, seed >> 32 & MASK], dtype=np.uint64)
    return ((first + bumps) & np.uint64(MASK))[..., None]


def uniform(key: RandomKey, position: int, purpose: Purpose) -> float:
    """One uniform in [0, 1); equals `uniforms` for a batch of one."""
    r0, r1, _, _ = philox(*key, position | purpose << 24)
    return ((r0 >> 5) * (1 << 26) + (r1 >> 6)) / float(1 << 53)
