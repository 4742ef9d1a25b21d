"""The kernels in Triton's interpreter, on tiny shapes: cases that take every branch and cross every block.

Run by test_kernels_triton.py in a process of its own, because the interpreter has to be asked for before Triton is
imported; by hand: TRITON_INTERPRET=1 pytest tests/support/kernels_interpreted.py. The interpreter has no products of
bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from evals import rng
from evals.engine.kernels.draw import first_above, uniform
from support.kernel_cases import (
    EDGES,
    Attention,
    check_copies,
    check_decode,
    check_decode_alone,
    check_draw,
    check_prefill,
    check_rounded_truncation,
    check_rows_without_a_draw,
    draw_both,
    make_rows,
    truncated,
)

INF = float("inf")
TYPES = [torch.float32, torch.float16]


@triton.jit
def uniform_kernel(seeds, keys, positions, out):
    row = tl.program_id(0)
    words = tl.load(keys + row * 3), tl.load(keys + row * 3 + 1), tl.load(keys + row * 3 + 2)
    tl.store(out + row, uniform(tl.load(seeds + row), words[0], words[1], words[2], tl.load(positions + row)))


def test_uniforms_equal_the_hosts_to_the_bit() -> None:
    generator = np.random.default_rng(0)
    seeds, keys = generator.integers(-(2**63), 2**63 - 1, 40), generator.integers(0, 2**32, (40, 3))
    seeds[:2], keys[:2] = (0, -1), 0
    positions = generator.integers(0, 2**24, 40)
    out = torch.empty(40, dtype=torch.float64)
    uniform_kernel[(40,)](torch.from_numpy(seeds), torch.from_numpy(keys), torch.from_numpy(positions), out)
    for row in range(40):
        assert out[row] == rng.uniforms(int(seeds[row]) % 2**64, keys[row, None], positions[row, None])[0]


@pytest.mark.parametrize("group", [1, 2, 5, 7, 8])
def test_decode_of_head_ratios(group: int) -> None:
    check_decode(Attention(2 * group, 2, 16), [0, 3, 40, 70], split=32)


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_decode_of_every_head_size(dim: int) -> None:
    check_decode(Attention(2, 1, dim), [17, 70], split=32)


@pytest.mark.parametrize("dtype", TYPES)
def test_decode_around_the_sizes_of_pages_blocks_and_splits(dtype: torch.dtype) -> None:
    check_decode(Attention(7, 1, 64, dtype), EDGES)


@pytest.mark.parametrize(
    ("window", "softcap"), [*((window, 0.0) for window in (1, 2, 16, 17, 48, 1000)), (0, 3.0), (17, 3.0)]
)
def test_decode_with_window_and_softcap(window: int, softcap: float) -> None:
    check_decode(Attention(4, 2, 16, torch.float32, window, softcap), [0, 15, 16, 17, 47, 48, 49, 100], split=32)


@pytest.mark.parametrize("split", [64, 128])
def test_decode_of_random_lengths(split: int) -> None:
    lengths = np.random.default_rng(split).integers(0, 300, 6).tolist()
    check_decode(Attention(6, 2, 32), lengths, split=split)


def test_a_decoded_row_is_the_same_alone() -> None:
    check_decode_alone(Attention(6, 2, 64, torch.float16), [0, 5, 31, 32, 33, 90], split=32)
    check_decode_alone(Attention(3, 1, 32, torch.float32, 20, 5.0), [5, 33, 90], split=32)


@pytest.mark.parametrize(
    "case",
    [
        Attention(2, 2, 64),
        Attention(7, 1, 80),  # in blocks of 32 keys, the others in blocks of 64
        Attention(7, 1, 80, torch.float16),
        Attention(16, 2, 16, torch.float16),
    ],
)
def test_prefill_of_ragged_runs(case: Attention) -> None:
    check_prefill(case, [0, 5, 30, 64], [40, 1, 20, 17])


@pytest.mark.parametrize("window", [1, 16, 33])
def test_prefill_with_window_and_softcap(window: int) -> None:
    check_prefill(Attention(4, 2, 16, torch.float32, window, 4.0), [0, 5, 80], [70, 3, 20])


@pytest.mark.parametrize(
    ("vocabulary", "dtype"),
    [(2, torch.float32), (31, torch.float16), (512, torch.bfloat16), *((1100, d) for d in (*TYPES, torch.bfloat16))],
)
def test_draws_equal_the_twins(vocabulary: int, dtype: torch.dtype) -> None:
    """15 rows: every alpha with every kind of exclusion."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (4 * torch.randn(15, vocabulary, generator=generator)).to(dtype)
    assert check_draw(logits, make_rows(logits, [1.0, 4.0, 0.7, INF, 10.0]), chunk=512) <= 1


@pytest.mark.parametrize(
    ("vocabulary", "dtype"), [(2, torch.bfloat16), (31, torch.float32), (31, torch.float16), (1500, torch.bfloat16)]
)
def test_truncation_keeps_what_sorting_keeps(vocabulary: int, dtype: torch.dtype) -> None:
    logits = 3 * torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    check_rounded_truncation(logits, dtype)


def test_truncated_draws_equal_the_twins() -> None:
    logits = (3 * torch.randn(12, 700, generator=torch.Generator().manual_seed(3))).to(torch.bfloat16)
    limits = truncated(12)
    rows = make_rows(logits, [1.0, 4.0, 0.7, INF])
    rows.exclude[1] = -1  # a row of one token that may be drawn
    assert check_draw(logits, rows, 256, limits=limits) <= 1
    rows.exclude[1] = logits[1].argmax()  # and one of none
    one = slice(1, 2)
    alone = {name: limit[one] for name, limit in limits.items()}
    ours, theirs = draw_both(logits[one], type(rows)(*(x[one] for x in rows)), 256, alone)
    assert ours.log_q.isnan().all()
    assert theirs.log_q.isnan().all()


def test_draws_of_a_large_vocabulary() -> None:
    logits = 2 * torch.randn(2, 151_936, generator=torch.Generator().manual_seed(1))
    assert check_draw(logits, make_rows(logits, [1.0, 4.0])) <= 1


@pytest.mark.parametrize("alpha", [1.0, 4.0, INF])
def test_draws_at_the_edges(alpha: float) -> None:
    logits = torch.full((8, 700), -INF)
    logits[0, 600] = 0.0  # all mass on one token
    logits[1, [0, 699]] = torch.tensor([1.0, -3000.0])
    logits[2, 10:530] = 2.0  # ties over a chunk's end
    logits[3, [5, 300]] = torch.tensor([3.0, 1.0])  # the excluded one has nearly all
    logits[4] = torch.arange(700) * -1e4
    logits[5] = 3e30
    logits[6, 300:] = 1e4
    logits[7, 256:512] = 0.0
    rows = make_rows(logits, [alpha])
    rows.exclude[:] = torch.tensor([-1, -1, 529, 5, 1, -1, 699, 256])
    assert check_draw(logits, rows, chunk=256) == 0


@triton.jit
def search_kernel(weights, target, found, before, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    place, passed = first_above(tl.load(weights + index), tl.load(target), index, SIZE)
    tl.store(found, place)
    tl.store(before, passed)


@pytest.mark.parametrize(
    ("target", "place", "passed"),
    [(0.0, 2, 0.0), (0.999, 2, 0.0), (1.0, 3, 1.0), (3.0, 5, 3.0), (5.999, 5, 3.0), (6.0, 5, 3.0), (7.0, 5, 3.0)],
)
def test_the_search_never_ends_at_a_place_without_weight(target: float, place: int, passed: float) -> None:
    weights = torch.tensor([0, 0, 1, 2, 0, 3, 0, 0], dtype=torch.float64)
    size: dict[str, Any] = {"SIZE": 8}
    found, before = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.float64)
    search_kernel[(1,)](weights, torch.tensor([target], dtype=torch.float64), found, before, **size)
    assert (int(found), float(before)) == (place, passed)
    search_kernel[(1,)](weights * 0, torch.tensor([target], dtype=torch.float64), found, before, **size)
    assert int(found) == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, for what NaN and infinity do
@pytest.mark.parametrize("alpha", [0.5, 4.0, INF])
def test_a_row_that_cannot_be_drawn_says_so(alpha: float) -> None:
    check_rows_without_a_draw(alpha, 700, chunk=256)


def test_alpha_one_has_log_z_zero_to_the_bit() -> None:
    logits = 3 * torch.randn(6, 700, generator=torch.Generator().manual_seed(3))
    assert draw_both(logits, make_rows(logits, [1.0]), chunk=256)[0].log_z.eq(0).all()


def test_a_draw_does_not_feel_its_company() -> None:
    logits = 3 * torch.randn(5, 700, generator=torch.Generator().manual_seed(4))
    rows = make_rows(logits, [1.0, 4.0, INF])
    together, _ = draw_both(logits, rows, chunk=256)
    for row in range(5):
        one = slice(row, row + 1)
        alone, _ = draw_both(logits[one], type(rows)(*(x[one] for x in rows)), chunk=256)
        assert [float(x[0]) for x in alone] == [float(x[row]) for x in together]


@pytest.mark.parametrize("dim", [20, 64])
def test_pages_are_copied_in_order(dim: int) -> None:
    check_copies(shape=(2, 3, 9, 2, 16, dim))
