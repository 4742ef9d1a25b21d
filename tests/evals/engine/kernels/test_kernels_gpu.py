"""The Triton kernels on a CUDA device, at real sizes: against their twins, row by row, and inside CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available() or find_spec("triton") is None:
    pytest.skip("needs a CUDA device and Triton", allow_module_level=True)

from evals.engine.kernels import decode, draw, pages, prefill
from support.kernel_cases import (
    EDGES,
    Attention,
    Rows,
    check_copies,
    check_decode,
    check_decode_alone,
    check_draw,
    check_prefill,
    check_rounded_truncation,
    check_rows_without_a_draw,
    make_pool,
    make_rows,
    make_states,
    truncated,
)

pytestmark = pytest.mark.gpu
CUDA = "cuda"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
INF = float("inf")
QWEN_1B, QWEN_7B = Attention(12, 2, 128, BF16), Attention(28, 4, 128, BF16)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 5, 7, 8])
def test_decode_of_every_head_shape(group: int, dim: int, dtype: torch.dtype) -> None:
    check_decode(Attention(2 * group, 2, dim, dtype), [*EDGES, 300, 511, 513, 1500], CUDA)


@pytest.mark.parametrize("split", [64, 128, 256])
@pytest.mark.parametrize("case", [QWEN_1B, QWEN_7B, Attention(32, 8, 128, BF16), Attention(12, 12, 64, FP32)])
def test_decode_of_random_lengths(case: Attention, split: int) -> None:
    check_decode(case, np.random.default_rng(split).integers(0, 2000, 64).tolist(), CUDA, split)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("window", [1, 16, 17, 300, 512, 4096])
def test_decode_with_window_and_softcap(window: int, softcap: float, dtype: torch.dtype) -> None:
    edges = [0, 15, 16, 17, window - 1, window, window + 1, 255, 299, 300, 301, 1000, 1111]
    check_decode(Attention(8, 4, 256, dtype, window, softcap), edges, CUDA)


@pytest.mark.parametrize("split", [64, 256])
@pytest.mark.parametrize("case", [QWEN_1B, QWEN_7B, Attention(8, 4, 256, FP32, 100, 5.0)])
def test_a_decoded_row_is_the_same_alone(case: Attention, split: int) -> None:
    check_decode_alone(case, np.random.default_rng(0).integers(0, 1500, 64).tolist(), CUDA, split)


@pytest.mark.parametrize("case", [QWEN_1B, QWEN_7B, Attention(8, 8, 80, FP16), Attention(8, 4, 256, FP32)])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (64, 0.0), (33, 4.0)])
def test_prefill_of_ragged_runs(case: Attention, window: int, softcap: float) -> None:
    case = case._replace(window=window, softcap=softcap)
    check_prefill(case, [0, 0, 5, 300, 64, 1000], [256, 257, 1, 200, 17, 1], CUDA)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("vocabulary", [5003, 32_001, 151_936, 152_064, 256_000])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_draws_equal_the_twins(vocabulary: int, dtype: torch.dtype, spread: float) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (spread * torch.randn(16, vocabulary, generator=generator)).to(CUDA, dtype)
    assert check_draw(logits, make_rows(logits, [1.0, 4.0, 0.7, INF, 10.0])) <= 3  # a flat law is all edges


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("vocabulary", [5003, 151_936])
def test_truncation_keeps_what_sorting_keeps(vocabulary: int, dtype: torch.dtype) -> None:
    logits = 3 * torch.randn(12, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    check_rounded_truncation(logits.to(CUDA), dtype)


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_truncated_draws_equal_the_twins(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(24, 151_936, generator=torch.Generator().manual_seed(3))).to(CUDA, dtype)
    assert check_draw(logits, make_rows(logits, [1.0, 4.0, 0.7, INF]), limits=truncated(24)) <= 1


def test_draws_of_rows_that_are_not_contiguous_with_each_other() -> None:
    logits = torch.randn(8, 6000, generator=torch.Generator().manual_seed(0)).to(CUDA)[:, :5003]
    assert check_draw(logits, make_rows(logits, [1.0, 4.0])) <= 1


@pytest.mark.parametrize("alpha", [0.5, 4.0, INF])
def test_rows_that_cannot_be_drawn_say_so(alpha: float) -> None:
    check_rows_without_a_draw(alpha, 70_000, draw.CHUNK, CUDA)


def test_a_draw_is_the_same_alone_and_alpha_one_has_log_z_zero() -> None:
    logits = (3 * torch.randn(64, 151_936, generator=torch.Generator().manual_seed(4))).to(CUDA, BF16)
    inputs = make_rows(logits, [1.0, 4.0, INF]).to(CUDA)
    together = torch.stack([x.double() for x in draw.draw(logits, *inputs)])
    assert together[2, 0::3].eq(0).all()
    for row in range(64):
        one = slice(row, row + 1)
        alone = draw.draw(logits[one], *Rows(*(x[one] for x in inputs)))
        assert torch.equal(torch.stack([x.double() for x in alone])[:, 0], together[:, row])


def test_pages_are_copied_in_order() -> None:
    check_copies(CUDA)
    check_copies(CUDA, (2, 28, 9, 2, 16, 128))


def replayed(work: Callable[[], Tensor]) -> Tensor:
    """What `work` returns after its second replay from a CUDA graph; synchronisation would fail the capture."""
    work()  # compile first
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()
    graph.replay()
    graph.replay()
    torch.cuda.synchronize()
    return out.clone()


def test_decode_in_a_graph_follows_its_buffers() -> None:
    """Captured at one set of positions, replayed at another, with the bits of a direct call."""
    lengths = np.random.default_rng(0).integers(0, 1000, 16).tolist()
    pool = make_pool(QWEN_1B, lengths, spare=2, seed=0, device=CUDA)
    q, k, v = make_states(QWEN_1B, 16, seed=0, device=CUDA)
    positions = torch.full((16,), -1, dtype=torch.int32, device=CUDA)
    arrivals = torch.zeros(16 * 2, dtype=torch.int32, device=CUDA)

    def work() -> Tensor:
        return decode.decode(q, k, v, *pool, positions, arrivals, 0.1)

    graph = torch.cuda.CUDAGraph()
    work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = work()
    positions.copy_(torch.tensor(lengths))
    for _ in range(3):
        graph.replay()
    assert torch.equal(out, work())
    assert arrivals.eq(0).all()


def test_prefill_write_draw_and_copies_in_a_graph() -> None:
    pool = make_pool(QWEN_1B, [64, 100], spare=4, seed=0, device=CUDA)
    q, k, v = make_states(QWEN_1B, 60, seed=0, device=CUDA)
    tiles = prefill.plan_tiles([64, 100], [40, 20], prefill.tile_tokens(12, 2))
    tiles = torch.from_numpy(tiles).to(CUDA)
    n = torch.cat([torch.arange(64, 104), torch.arange(100, 120)])
    row = torch.tensor([0] * 40 + [1] * 20)
    slots = pool.pages.cpu()[row, n // 16].long() * 16 + n % 16
    slots = slots.to(CUDA)
    logits = torch.randn(4, 50_000, device=CUDA)
    inputs = make_rows(logits, [4.0]).to(CUDA)
    cache = torch.randn(2, 3, 9, 2, 16, 64, device=CUDA)
    pairs = torch.tensor([[1, 2], [-1, -1]], device=CUDA)

    def attend() -> Tensor:
        pages.write(k, v, pool.k_pages, pool.v_pages, slots)
        return prefill.prefill(q, pool.k_pages, pool.v_pages, pool.pages, tiles, 0.1)

    def copy() -> Tensor:
        pages.copy_pages(cache, pairs)
        return cache

    for work in (attend, copy, lambda: torch.stack([x.double() for x in draw.draw(logits, *inputs)])):
        assert torch.equal(replayed(work), work())
