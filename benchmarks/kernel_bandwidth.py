"""Measures the bandwidth of the Triton kernels on this GPU against that of a copy.

    python benchmarks/kernel_bandwidth.py [--context 300] [--sweep]

Decode attention runs over the caches of all layers, as a step does, so that what one layer reads is not in the cache
of the chip when it is read again (for few rows it is). Bytes are those that have to move: keys, values, queries and
results, or the logits once. `--sweep` tries other tunings of decode. Times are of replayed CUDA graphs.
Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from evals.engine.decoding_speed import copy_bandwidth
from evals.engine.kernels.decode import DEFAULT, Tuning, decode
from evals.engine.kernels.draw import draw
from evals.engine.kernels.pages import copy_pages, write
from evals.engine.kernels.prefill import plan_tiles, prefill, tile_tokens
from evals.engine.kv_cache import PAGE

BATCHES = (1, 10, 64, 256)


class Shape(NamedTuple):
    """The dimensions of a model that the kernels depend on."""

    layers: int
    heads: int
    kv_heads: int
    dim: int
    vocabulary: int


SHAPES = {"1.5b": Shape(28, 12, 2, 128, 151_936), "7b": Shape(28, 28, 4, 128, 152_064)}


def seconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Median time of one replay of `work` as a CUDA graph."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for _ in range(3):
        graph.replay()
    for mark in marks[:-1]:
        mark.record()
        graph.replay()
    marks[-1].record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in pairwise(marks))
    return times[repeats // 2] / 1e3


class Caches:
    """Keys and values of all layers and a page table for `rows` sequences of `context` keys, in random pages."""

    def __init__(self, shape: Shape, rows: int, context: int, room: int = 1024) -> None:
        used = context // PAGE + 1
        self.tensor = torch.randn(
            2, shape.layers, rows * used + 1, shape.kv_heads, PAGE, shape.dim, device="cuda", dtype=torch.bfloat16
        )
        self.table = torch.zeros(rows, room // PAGE, dtype=torch.int32, device="cuda")
        self.table[:, :used] = (torch.randperm(rows * used, device="cuda") + 1).view(rows, used)


def states(shape: Shape, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    packed = torch.randn(rows, shape.heads + 2 * shape.kv_heads, shape.dim, device="cuda", dtype=torch.bfloat16)
    q, k, v = packed.split([shape.heads, shape.kv_heads, shape.kv_heads], 1)
    return q, k, v


def decode_row(shape: Shape, rows: int, context: int, tuning: Tuning, copy: float) -> dict[str, Any]:
    """Measure one layer's decode attention, write included, with a page table for 1,024 tokens."""
    caches, (q, k, v) = Caches(shape, rows, context), states(shape, rows)
    positions = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    arrivals = torch.zeros(rows * shape.kv_heads, dtype=torch.int32, device="cuda")

    def step() -> None:
        for layer in range(shape.layers):
            keys, values = caches.tensor[0, layer], caches.tensor[1, layer]
            decode(q, k, v, keys, values, caches.table, positions, arrivals, shape.dim**-0.5, tuning=tuning)

    took = seconds(step) / shape.layers
    moved = 2 * rows * shape.dim * (2 * (context + 1) * shape.kv_heads + 2 * shape.heads)
    return result("decode", took, moved, copy, rows=rows, tuning=list(tuning))


def draw_row(shape: Shape, rows: int, dtype: torch.dtype, copy: float) -> dict[str, Any]:
    """Measure draws from logits in memory, not in the chip's cache: as many buffers as fill 256 MiB, at most 16."""
    size = rows * shape.vocabulary * dtype.itemsize
    count = max(1, min(16, (256 << 20) // size))
    buffers = [3 * torch.randn(rows, shape.vocabulary, device="cuda").to(dtype) for _ in range(count)]
    alpha = torch.full((rows,), 4.0, dtype=torch.float64, device="cuda")
    whole = torch.arange(rows, device="cuda")
    nothing = torch.full_like(whole, -1)
    key = torch.zeros(rows, 3, dtype=torch.long, device="cuda")
    out = torch.empty(3, rows, dtype=torch.long, device="cuda")

    def step() -> None:
        for logits in buffers:
            draw(logits, alpha, nothing, whole, key, whole, out)

    took = seconds(step) / count
    return result("draw", took, size, copy, rows=rows, dtype=str(dtype).removeprefix("torch."))


def prefill_row(shape: Shape, prompts: int, length: int, copy: float) -> dict[str, Any]:
    """Measure write and attention of a batch of prompts in one layer; the bytes are those of every key once."""
    caches, (q, k, v) = Caches(shape, prompts, length), states(shape, prompts * length)
    n = torch.arange(length, device="cuda")
    slots = (caches.table[:, n // PAGE].long() * PAGE + n % PAGE).flatten()
    tiles = plan_tiles([0] * prompts, [length] * prompts, tile_tokens(shape.heads, shape.kv_heads))
    tiles = torch.from_numpy(tiles).cuda()
    keys, values = caches.tensor[0, 0], caches.tensor[1, 0]

    def step() -> None:
        write(k, v, keys, values, slots)
        prefill(q, keys, values, caches.table, tiles, shape.dim**-0.5)

    moved = 2 * prompts * length * shape.dim * (4 * shape.kv_heads + 2 * shape.heads)
    return result("prefill", seconds(step), moved, copy, rows=prompts * length)


def copies_row(shape: Shape, count: int, copy: float) -> list[dict[str, Any]]:
    """Measure copies of `count` pages in all layers: by the kernel, and by a gather with a scatter."""
    cache = Caches(shape, 64, 300).tensor
    pairs = torch.arange(2 * count, device="cuda").view(count, 2) + 1
    source, target = pairs.T.contiguous()
    moved = 2 * count * cache[:, :, 0].numel() * cache.element_size()
    ours = seconds(lambda: copy_pages(cache, pairs))
    theirs = seconds(lambda: cache.index_copy_(2, target, cache.index_select(2, source)))
    return [result(name, took, moved, copy, rows=count) for name, took in (("copy", ours), ("index_copy", theirs))]


def result(name: str, took: float, moved: int, copy: float, **facts: Any) -> dict[str, Any]:
    share = moved / took / copy
    line = {"kernel": name, **facts, "us": round(took * 1e6, 2), "gbps": round(moved / took / 1e9), "of_copy": share}
    print(
        "  " + "  ".join(f"{key} {value:.3g}" if key == "of_copy" else f"{key} {value}" for key, value in line.items())
    )
    return line | {"of_copy": round(share, 3)}


def tunings(sweep: bool) -> list[Tuning]:
    if not sweep:
        return [DEFAULT]
    return [Tuning(*values) for values in product((64, 128, 256), (8192, 16384), (2, 4), (2, 3, 4))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=300, help="keys of every decoded row")
    parser.add_argument("--sweep", action="store_true", help="try tunings of decode")
    args = parser.parse_args()
    copy = copy_bandwidth(torch.device("cuda"))
    facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    print(f"{facts}, copy {copy / 1e9:.0f} GB/s")
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, shape in SHAPES.items():
        print(f"{name} {shape}, context {args.context}")
        found = rows.setdefault(name, [])
        for batch, tuning in product(BATCHES, tunings(args.sweep)):
            found.append(decode_row(shape, batch, args.context, tuning, copy))
        for dtype, batch in product((torch.bfloat16, torch.float32), BATCHES):
            found.append(draw_row(shape, batch, dtype, copy))
        found.append(prefill_row(shape, 27, 150, copy))
        for count in (1, 8, 64):
            found.extend(copies_row(shape, count, copy))
    print(json.dumps({**facts, "copy_gbps": round(copy / 1e9), "context": args.context, "shapes": rows}))


if __name__ == "__main__":
    main()
