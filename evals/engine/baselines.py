"""Baselines that decoding is compared with: the least time of a step (roofline), and the library's `generate`.

A step reads every weight once and the keys and values of every row (Williams et al., Roofline, CACM 2009). Both peaks
are measured on the spot: that of memory by a copy, that of arithmetic by a large product. `generate` keeps scores and
logits of all steps, as published power-sampling code does, which needs log p and log q of every token; the network
decodes with its own attention and cache. Both need a model as it came (`checkpoint.read_model`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import nn

from evals.engine.device import out_of_memory, read_memory, release, reset_peak
from evals.engine.kv_cache import PAGE
from evals.engine.model import PAGED, Model
from evals.types import MemoryReading

COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
PRODUCT_SIZE = {"cuda": 8192, "cpu": 512}
REPEATS = 10


class Roofline(NamedTuple):
    """What a step of a model moves and computes, and the peak rates of its device: the least time of a step."""

    weight_bytes: int
    """Read once a step: all weights but embeddings that are only looked up (a tied one is the head, too)."""
    weights: int
    """Number of these weights, each of which is multiplied and added once per row."""
    kv_bytes: int
    """Bytes of keys and values of one token, all layers."""
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
        """Which of the two times is the larger."""
        memory, arithmetic = self.memory_seconds(rows, context), self.arithmetic_seconds(rows, context)
        return "memory" if memory >= arithmetic else "arithmetic"


def roofline(model: Model) -> Roofline:
    """The roofline of a model as it came; measures the device for a moment."""
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


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds of `work` on `device`, after three calls that do not count."""
    for _ in range(3):
        work()
    if device.type == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
        for mark in marks[:-1]:
            mark.record()
            work()
        marks[-1].record()
        torch.cuda.synchronize(device)
        times = [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]
    else:
        instants = [time.perf_counter()]
        for _ in range(REPEATS):
            work()
            instants.append(time.perf_counter())
        times = [after - before for before, after in pairwise(instants)]
    return sorted(times)[REPEATS // 2]


class Generated(NamedTuple):
    """Time and memory of one call of `generate`."""

    seconds: float
    steps: int
    """New tokens of the longest row."""
    memory: MemoryReading
    """After it; the peak is that of this call, on a CPU that of the process."""


@torch.inference_mode()
def generate(
    model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int, alpha: float, *, ends: bool = True
) -> Generated:
    """Time the library's sampling from softmax(alpha * logits) in a batch; without `ends`, EOS does not end a row.

    Raises what torch raises where the device has no room for the scores.
    """
    device, longest = model.device, max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    release(device)
    reset_peak(device)
    began = time.perf_counter()
    model.network.set_attn_implementation("sdpa")
    try:
        output = model.network.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            min_new_tokens=None if ends else max_new_tokens,
            do_sample=True,
            temperature=1 / alpha,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
            output_scores=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    finally:
        model.network.set_attn_implementation(PAGED)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Generated(time.perf_counter() - began, output.sequences.shape[1] - longest, read_memory(device))


def generate_steps(model: Model, prompts: Sequence[Sequence[int]], steps: int, alpha: float) -> Generated | None:
    """Time of `steps` decoding steps without the pass over the prompts; None where memory does not suffice."""
    try:
        generate(model, prompts, 3, alpha, ends=False)  # what is loaded and allocated at first use
        short = generate(model, prompts, 1, alpha, ends=False)
        long = generate(model, prompts, steps + 1, alpha, ends=False)
    except RuntimeError as error:
        if out_of_memory(error) is None:
            raise
        return None
    return Generated(long.seconds - short.seconds, steps, long.memory)
