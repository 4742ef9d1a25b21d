"""The least time that a decoding step can take, from what it has to read and to compute. Knows no engine.

A step reads every weight once and the keys and values of every row (Williams et al., Roofline, CACM 2009). Both peaks
are measured on the spot: that of memory by a copy, that of arithmetic by a large product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import nn

from evals.engine.kv_cache import PAGE
from evals.engine.model import Model

COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
PRODUCT_SIZE = {"cuda": 8192, "cpu": 512}
REPEATS = 10


class Roofline(NamedTuple):
    """What a step of a model moves and computes, on a device of these peaks."""

    weight_bytes: int
    """Read once a step: all weights but embeddings that are only looked up (a tied one is the head, too)."""
    weights: int
    """As a number of weights, each of which multiplies and adds once per row."""
    kv_bytes: int
    """Keys and values of one token, all layers."""
    bandwidth: float
    """Bytes per second, read and written."""
    arithmetic: float
    """Operations per second of a product in the model's type."""

    def memory_seconds(self, rows: int, context: float) -> float:
        """Time to read weights and the keys and values of `rows` rows of `context` tokens."""
        return (self.weight_bytes + rows * context * self.kv_bytes) / self.bandwidth

    def arithmetic_seconds(self, rows: int, context: float) -> float:
        """Time of all products of `rows` rows, and then to read keys and values, which nothing can hide."""
        return 2 * self.weights * rows / self.arithmetic + rows * context * self.kv_bytes / self.bandwidth

    def seconds(self, rows: int, context: float) -> float:
        """The least time of a step: the larger of the two."""
        return max(self.memory_seconds(rows, context), self.arithmetic_seconds(rows, context))

    def binds(self, rows: int, context: float) -> Literal["memory", "arithmetic"]:
        """Which of the two is the larger."""
        memory, arithmetic = self.memory_seconds(rows, context), self.arithmetic_seconds(rows, context)
        return "memory" if memory >= arithmetic else "arithmetic"


def roofline(model: Model) -> Roofline:
    """Of a model that no engine has changed yet; measures the device for a moment."""
    network = model.network
    head = network.get_output_embeddings().weight
    embeddings = {id(part.weight) for part in network.modules() if isinstance(part, nn.Embedding)} - {id(head)}
    read = [weight for weight in network.parameters() if id(weight) not in embeddings]
    return Roofline(
        weight_bytes=sum(weight.nbytes for weight in read),
        weights=sum(weight.numel() for weight in read),
        kv_bytes=model.cache_shape.page_bytes // PAGE,
        bandwidth=copy_bandwidth(model.device),
        arithmetic=product_rate(model.device, head.dtype),
    )


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a large copy on `device`."""
    source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median_seconds(lambda: target.copy_(source), device)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on `device`; adding and multiplying are two."""
    size = PRODUCT_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / median_seconds(lambda: torch.mm(a, b, out=out), device)


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Median time of `work` on `device`, after three calls that do not count."""
    for _ in range(3):
        work()
    if device.type == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        for mark in marks[:-1]:
            mark.record()
            work()
        marks[-1].record()
        torch.cuda.synchronize(device)
        times = [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]
    else:
        instants = [time.perf_counter()]
        for _ in range(repeats):
            work()
            instants.append(time.perf_counter())
        times = [after - before for before, after in pairwise(instants)]
    return sorted(times)[repeats // 2]
