"""Comparisons of the Triton kernels with their torch twins, for any device; run by test_kernels_triton.py in Triton's
interpreter and by test_kernels_gpu.py on CUDA. Not collected by itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evals import rng
from evals.engine import attention, token_sampling
from evals.engine.attention import AttentionGroup
from evals.engine.kernels import decode, draw, pages, prefill, top_k_top_p
from evals.engine.kv_cache import PAGE

EDGE = 1e-5
EDGES = [0, 1, 15, 16, 17, 31, 33, 255, 256, 257]
"""Keys before the new token, around the sizes of pages, blocks and splits."""


class Attention(NamedTuple):
    """Shape of one layer's attention."""

    heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype = torch.float32
    window: int = 0
    softcap: float = 0.0

    @property
    def tolerance(self) -> float:
        return {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[self.dtype]


class Pool(NamedTuple):
    """A pool in which every row has pages of its own; what no row has written is NaN."""

    k_pages: Tensor
    v_pages: Tensor
    pages: Tensor
    """int32 [B, W]."""

    @property
    def clean(self) -> tuple[Tensor, Tensor]:
        """Keys and values with 0 for NaN, as the twin needs them."""
        return self.k_pages.nan_to_num(0.0), self.v_pages.nan_to_num(0.0)


def make_pool(case: Attention, lengths: list[int], spare: int, seed: int, device: str) -> Pool:
    """`lengths` keys are there already in each row; its table has room for `spare` pages more, in random order."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) // PAGE + 1 + spare
    num = len(lengths) * width
    pages = (torch.randperm(num, generator=generator) + 1).view(len(lengths), width)
    tensors: list[Tensor] = []
    for _ in range(2):
        pool = torch.full((num + 1, case.kv_heads, PAGE, case.dim), torch.nan)
        for row, length in enumerate(lengths):
            n = torch.arange(length)
            pool[pages[row, n // PAGE], :, n % PAGE] = torch.randn(length, case.kv_heads, case.dim, generator=generator)
        tensors.append(pool.to(device, case.dtype))
    return Pool(tensors[0], tensors[1], pages.to(device, torch.int32))


def make_states(case: Attention, tokens: int, seed: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as slices of one packed projection, so that their rows are not next to each other."""
    total = case.heads + 2 * case.kv_heads
    packed = torch.randn(tokens, total, case.dim, generator=torch.Generator().manual_seed(seed + 1))
    q, k, v = packed.to(device, case.dtype).split([case.heads, case.kv_heads, case.kv_heads], 1)
    return q, k, v


def twin(q: Tensor, pool: Pool, block: AttentionGroup, case: Attention, scale: float) -> Tensor:
    """attention.attend in float32, whatever the type of the states."""
    k_pages, v_pages = (x.float() for x in pool.clean)
    return attention.attend(q.float() * scale, k_pages, v_pages, block, case.window, case.softcap)


def check_decode(
    case: Attention, lengths: list[int], device: str = "cpu", split: int = 256, scale: float = 0.1
) -> None:
    """Every row, an idle one between them, against the twin; pages hold the new keys and nothing else has changed."""
    rows = [*lengths[:1], 0, *lengths[1:]]  # row 1 is idle
    pool = make_pool(case, rows, spare=2, seed=len(lengths), device=device)
    q, k, v = make_states(case, len(rows), seed=1, device=device)
    positions = torch.tensor(rows, dtype=torch.int32, device=device)
    positions[1] = -1
    busy = positions >= 0
    expected = Pool(pool.k_pages.clone(), pool.v_pages.clone(), pool.pages)
    at = positions[busy].long()
    page = pool.pages[busy, at // PAGE].long()
    expected.k_pages[page, :, at % PAGE], expected.v_pages[page, :, at % PAGE] = k[busy], v[busy]
    arrivals = torch.zeros(len(rows) * case.kv_heads, dtype=torch.int32, device=device)
    tuning = decode.Tuning(split=split)
    out = decode.decode(q, k, v, *pool, positions, arrivals, scale, case.window, case.softcap, tuning)
    assert out[1].eq(0).all()
    assert arrivals.eq(0).all()
    for ours, theirs in zip(pool, expected, strict=True):
        assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))
    block = AttentionGroup(slice(0, len(at)), expected.pages[busy].long(), at[:, None] + 1)
    close(out[busy], twin(q[busy], expected, block, case, scale), case.tolerance)


def check_decode_alone(case: Attention, lengths: list[int], device: str = "cpu", split: int = 256) -> None:
    """A row by itself, under a table just wide enough, gives the same bits as in the batch."""
    pool = make_pool(case, lengths, spare=3, seed=5, device=device)
    q, k, v = make_states(case, len(lengths), seed=2, device=device)
    positions = torch.tensor(lengths, dtype=torch.int32, device=device)
    arrivals = torch.zeros(len(lengths) * case.kv_heads, dtype=torch.int32, device=device)

    def run(rows: slice, width: int) -> Tensor:
        table = pool.pages[rows, :width].contiguous()
        return decode.decode(
            q[rows], k[rows], v[rows], pool.k_pages, pool.v_pages, table, positions[rows], arrivals,
            case.dim**-0.5, case.window, case.softcap, decode.Tuning(split=split),
        )  # fmt: skip

    together = run(slice(None), pool.pages.shape[1])
    for row, length in enumerate(lengths):
        assert torch.equal(run(slice(row, row + 1), length // PAGE + 1)[0], together[row])


def check_prefill(case: Attention, starts: list[int], lengths: list[int], device: str = "cpu") -> None:
    """Write and attend of ragged runs against the twin; chunks of a run give the same bits as the run."""
    pool = make_pool(case, starts, spare=max(lengths) // PAGE + 1, seed=3, device=device)
    q, k, v = make_states(case, sum(lengths), seed=3, device=device)
    scale = case.dim**-0.5
    positions = [range(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    table = pool.pages.long()
    slots = torch.cat([table[i, torch.tensor(p) // PAGE] * PAGE + torch.tensor(p).to(device) % PAGE
                       for i, p in enumerate(positions)])  # fmt: skip
    pages.write(k, v, pool.k_pages, pool.v_pages, slots)
    assert torch.equal(pool.k_pages.transpose(1, 2).reshape(-1, *k.shape[1:])[slots], k)
    assert torch.equal(pool.v_pages.transpose(1, 2).reshape(-1, *v.shape[1:])[slots], v)

    def run(starts: list[int], lengths: list[int], rows: list[int], q: Tensor) -> Tensor:
        tiles = prefill.plan_tiles(starts, lengths, prefill.tile_tokens(case.heads, case.kv_heads))
        tiles = np.concatenate([tiles, np.zeros((1, 4), np.int32)])  # one to skip
        return prefill.prefill(
            q, pool.k_pages, pool.v_pages, pool.pages[rows], torch.from_numpy(tiles).to(device), scale,
            case.window, case.softcap,
        )  # fmt: skip

    out = run(starts, lengths, list(range(len(starts))), q)
    row = 0
    for i, (p, length) in enumerate(zip(positions, lengths, strict=True)):
        block = AttentionGroup(slice(0, length), table[i : i + 1], torch.tensor([[x + 1 for x in p]], device=device))
        mine = q[row : row + length]
        close(out[row : row + length], twin(mine, pool, block, case, scale), case.tolerance)
        cut = length // 3
        for begin, end in ((0, cut), (cut, length)):
            if begin < end:
                chunk = run([starts[i] + begin], [end - begin], [i], mine[begin:end])
                # the interpreter's products, numpy's, may differ in the last bit with a row's place in the tile
                close(chunk, out[row + begin : row + end], 0.0 if device == "cuda" else case.tolerance)
        row += length


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.float(), theirs.float(), atol=tolerance, rtol=tolerance)


class Rows(NamedTuple):
    """What a draw needs beside logits, on the host."""

    alpha: Tensor
    exclude: Tensor
    seed: Tensor
    key: Tensor
    position: Tensor

    def to(self, device: torch.device | str) -> Rows:
        return Rows(*(x.to(device) for x in self))

    @property
    def uniform(self) -> Tensor:
        """[B] float64, by the host's generator."""
        return torch.tensor(
            [
                rng.uniform(rng.RandomKey(int(s), int(k[0]), int(k[1]), int(k[2])), int(p), rng.Purpose.TOKEN)
                for s, k, p in zip(self.seed, self.key, self.position, strict=True)
            ],
            dtype=torch.float64,
        )


def make_rows(logits: Tensor, alphas: list[float], seed: int = 0) -> Rows:
    """Alphas in turn; every third row excludes its likeliest token, every third another one."""
    count, vocabulary = logits.shape
    generator = np.random.default_rng(seed)
    exclude = torch.full((count,), -1)
    exclude[1::3] = logits.float().cpu().argmax(-1)[1::3]
    exclude[2::3] = torch.from_numpy(generator.integers(0, vocabulary, count))[2::3]
    return Rows(
        torch.tensor((alphas * count)[:count], dtype=torch.float64),
        exclude,
        torch.from_numpy(generator.integers(-(2**63), 2**63 - 1, count)),
        torch.from_numpy(generator.integers(0, 2**32, (count, 3))),
        torch.from_numpy(generator.integers(0, 2**20, count)),
    )


Limits = dict[str, Tensor]
"""`top_k_B` and `top_p_B`, or nothing."""


def draw_both(
    logits: Tensor, rows: Rows, chunk: int, limits: Limits | None = None
) -> tuple[token_sampling.Draw, token_sampling.Draw]:
    """The kernel's draw and the twin's in float64, both on the host."""
    limits = limits or {}
    there = {name: limit.to(logits.device) for name, limit in limits.items()}
    found = draw.draw(logits, *rows.to(logits.device), chunk=chunk, **there)
    expected = token_sampling.draw(logits.cpu().float(), rows.alpha, rows.uniform, rows.exclude, **limits)
    return token_sampling.Draw(*(x.cpu() for x in found)), expected


def check_draw(
    logits: Tensor, rows: Rows, chunk: int = draw.CHUNK, tolerance: float = 2e-5, limits: Limits | None = None
) -> int:
    """Compare with the twin; returns how many tokens differ, each of them within EDGE of a boundary of the CDF."""
    limits = limits or {}
    ours, theirs = draw_both(logits, rows, chunk, limits)
    same = ours.token == theirs.token
    for row in (~same).nonzero().flatten().tolist():
        assert at_edge(logits[row].cpu(), rows, row, int(ours.token[row]), limits), f"row {row}: {ours}, {theirs}"
    torch.testing.assert_close(ours.log_q[same], theirs.log_q[same], atol=tolerance, rtol=0, equal_nan=True)
    torch.testing.assert_close(ours.log_z[same], theirs.log_z[same], atol=tolerance, rtol=0, equal_nan=True)
    return int((~same).sum())


def at_edge(logits_V: Tensor, rows: Rows, row: int, token: int, limits: Limits) -> bool:
    """Whether the uniform lies within EDGE of the interval of this token in the drawable law."""
    scaled = logits_V.double() * rows.alpha[row]
    if limits:
        mine = {name: limit[row, None] for name, limit in limits.items()}
        scaled[~token_sampling.kept((scaled - scaled.max())[None], **mine)[0]] = -torch.inf
    if rows.exclude[row] >= 0:
        scaled[rows.exclude[row]] = -torch.inf
    cumulative = scaled.softmax(-1).cumsum(-1)
    low, high = (float(cumulative[token - 1]) if token else 0.0), float(cumulative[token])
    return low - EDGE <= float(rows.uniform[row]) <= high + EDGE


def check_truncation(logits: Tensor, top_k: list[int], top_p: list[float]) -> None:
    """Every row keeps the very tokens that sorting keeps; a mass within 1e-6 of a boundary may fall on either side."""
    count, vocabulary = logits.shape
    alpha = torch.tensor(([1.0, 4.0, torch.inf] * count)[:count], dtype=torch.float64)
    limits = {
        "top_k_B": torch.tensor((top_k * count)[:count]),
        "top_p_B": torch.tensor((top_p * count)[:count], dtype=torch.float64),
    }
    last = top_k_top_p.truncate(logits, *(x.to(logits.device) for x in (alpha, *limits.values())))
    host = logits.cpu().float().double()
    order = torch.from_numpy(np.argsort(-host.numpy(), axis=-1, kind="stable"))
    scaled = (host - host.amax(-1, keepdim=True)) * torch.where(alpha.isinf(), 1.0, alpha)[:, None]
    expected = token_sampling.kept(scaled, **limits).sum(-1)
    for row in range(count):
        place = (order[row] == last.token.cpu()[row]).nonzero()
        found = int(place[0, 0]) + 1 if len(place) else vocabulary
        if found != expected[row]:
            mass = scaled[row].exp().sort(descending=True).values
            k = int(limits["top_k_B"][row]) or vocabulary
            share = mass[: min(found, int(expected[row]))].sum() / mass[:k].sum()
            assert abs(share - limits["top_p_B"][row]) < 1e-6, (row, found, expected[row])


def check_copies(device: str = "cpu", shape: tuple[int, ...] = (2, 3, 9, 2, PAGE, 20)) -> None:
    """Copies in order, a page being written after it was read; the other pages stay, NaN included."""
    cache = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    cache[:, :, 8] = torch.nan
    expected = cache.clone()
    for source, target in ((1, 2), (5, 1), (8, 6)):
        expected[:, :, target] = expected[:, :, source]
    pages.copy_pages(cache, torch.tensor([[1, 2], [-1, -1], [5, 1], [8, 6]], device=device))
    assert torch.equal(cache.nan_to_num(7.0), expected.nan_to_num(7.0))


def check_rounded_truncation(logits: Tensor, dtype: torch.dtype) -> None:
    """With ties (halves only) as well as without."""
    for rounded in (logits, (2 * logits).round() / 2):
        check_truncation(rounded.to(dtype), [0, 1, 2, 50, 7], [1.0, 0.9, 0.3, 0.999])


def truncated(count: int) -> Limits:
    """Limits of `count` rows, a multiple of 12; the second of them keeps one token."""
    return {
        "top_k_B": torch.tensor([0, 1, 20, 50] * (count // 4)),
        "top_p_B": torch.tensor([0.9, 1.0, 0.5, 1.0, 0.95, 0.2] * (count // 6), dtype=torch.float64),
    }


def check_rows_without_a_draw(alpha: float, vocabulary: int, chunk: int, device: str = "cpu") -> None:
    """Rows that hold NaN or infinity, or from which nothing is left, have a log q of NaN and a token all the same."""
    logits = torch.zeros(6, vocabulary)
    logits[0, vocabulary // 2] = torch.nan
    logits[1] = -torch.inf
    logits[2, 1:] = -torch.inf  # its only token is excluded
    logits[3, 0] = torch.nan  # and excluded
    logits[4, 3] = torch.inf
    rows = make_rows(logits, [alpha])
    rows.exclude[:] = torch.tensor([-1, -1, 0, 0, -1, 7])
    ours, theirs = draw_both(logits.to(device), rows, chunk)
    assert ours.log_q.isnan().tolist() == theirs.log_q.isnan().tolist() == [True, True, True, True, True, False]
    assert ((ours.token >= 0) & (ours.token < vocabulary)).all()
