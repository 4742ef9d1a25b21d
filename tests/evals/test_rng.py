"""The generator is Philox4x32-10, its uniforms are uniform, and no two uses share a counter."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from evals.rng import Purpose, RandomKey, chain_key, philox, uniform, uniforms


@pytest.mark.parametrize(
    ("seed", "counter", "words"),
    [  # known answers published with the Random123 library
        (0, [0, 0, 0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (0xFFFFFFFFFFFFFFFF, [0xFFFFFFFF] * 4, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            0x299F31D0A4093822,
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(seed: int, counter: list[int], words: list[int]) -> None:
    assert list(philox(seed, *counter)) == words


@pytest.mark.parametrize("seed", [42, 2**64 - 1])
def test_uniforms_do_not_depend_on_their_batch(seed: int) -> None:
    keys = [(p, s, m) for p in range(5) for s in range(2) for m in range(3)]
    together = uniforms(seed, keys, range(len(keys)))
    alone = [uniform(RandomKey(seed, *k), position, Purpose.TOKEN) for position, k in enumerate(keys)]
    assert together.tolist() == alone


def test_uniforms_are_uniform() -> None:
    draws = uniforms(1, [(i, 0, 0) for i in range(20_000)], np.zeros(20_000, dtype=int))
    assert draws.min() >= 0
    assert draws.max() < 1
    assert kstest(draws, "uniform").pvalue > 1e-3


def test_every_word_and_every_purpose_has_its_own_draw() -> None:
    seen = {
        uniform(RandomKey(seed, problem, sample, move), position, purpose)
        for seed in (0, 1, 1 << 40)
        for problem in (0, 1)
        for sample in (0, 1, 1 << 16)
        for move in (0, 1)
        for position in (0, 1)
        for purpose in Purpose
    }
    assert len(seen) == 3 * 2 * 3 * 2 * 2 * len(Purpose)


def test_a_word_that_overflows_is_refused() -> None:
    assert chain_key(9, 3, 2).of(1) == (9, 3, 2, 1)
    with pytest.raises(ValueError, match="overflows"):
        chain_key(0, 0, 1 << 16)
    with pytest.raises(ValueError, match="overflows"):
        chain_key(0, 1 << 32, 0)
