"""Measures how fast a model decodes on this machine, and what that is compared with: the least time of a step
(roofline), and the library's `generate`.

A step reads every weight once and the keys and values of every row (Williams et al., Roofline, CACM 2009). Both peaks
are measured on the spot: that of memory by a copy, that of arithmetic by a large product. `generate` keeps scores and
logits of all steps, as published power-sampling code does, which needs log p and log q of every token; the network
decodes with its own attention and cache. Both need a model as it came (`checkpoint.read_model`). The engine is timed
in the loop that answers problems, with chains that never end early.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from evals.config import EngineConfig
from evals.engine.device import out_of_memory, read_memory, release, reset_peak
from evals.engine.engine import Engine
from evals.engine.execution import prepare
from evals.engine.kv_cache import PAGE
from evals.engine.model import PAGED, Model
from evals.rng import RandomKey
from evals.types import Chain, ChainFigures, MemoryReading, Prompt, Request, Sample, Steps, Submit

ALPHA = 4.0
WARM_UP = 20
"""Steps before the timed ones."""
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
PRODUCT_SIZE = {"cuda": 8192, "cpu": 512}
REPEATS = 20


def lengths(context: int, steps: int) -> tuple[int, int]:
    """Tokens of a prompt whose `steps` timed steps see `context` tokens in the mean, below 1 if there is none, and of
    its answer, warm-up included."""
    return context - WARM_UP - steps // 2, WARM_UP + steps + 1


def random_prompts(model: Model, count: int, length: int) -> list[list[int]]:
    """Prompts of random tokens, which share no page."""
    return np.random.default_rng(0).integers(model.vocab_size, size=(count, length)).tolist()


def peak(memory: MemoryReading) -> int:
    """The peak of the device in bytes; on a CPU that of the process."""
    return (memory.peak_rss_bytes if memory.peak_bytes is None else memory.peak_bytes) or 0


@dataclass(frozen=True)
class Roofline:
    """What a step of a model moves and computes, and the peak rates of its device."""

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

    def step_ms(self, slots: int, context: float) -> tuple[float, float]:
        """Milliseconds of a step of `slots` rows of `context` tokens, of which the larger binds: to read the weights
        and all keys and values, and of all products and then to read keys and values, which nothing can hide."""
        kv_seconds = slots * context * self.kv_bytes / self.bandwidth
        memory, products = self.weight_bytes / self.bandwidth, 2 * self.weights * slots / self.arithmetic
        return 1e3 * (memory + kv_seconds), 1e3 * (products + kv_seconds)


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
    return 2 * source.nbytes / mean_seconds("b.copy_(a)", a=source, b=torch.empty_like(source))


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on `device`; adding and multiplying are two."""
    size = PRODUCT_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / mean_seconds("torch.mm(a, b, out=out)", torch=torch, a=a, b=b, out=torch.empty_like(a))


def mean_seconds(statement: str, **names: object) -> float:
    """Mean seconds of a statement over these names, enqueued REPEATS times at once, by torch's own timer."""
    from torch.utils.benchmark import Timer  # no part of a start-up, which is measured as well

    return Timer(statement, globals=names, num_threads=torch.get_num_threads()).timeit(REPEATS).mean


@dataclass(frozen=True)
class Generated:
    """Time and memory of one call of `generate`."""

    seconds: float
    steps: int
    """New tokens of the longest row."""
    peak_bytes: int
    """Peak of device memory during the call; on a CPU that of the process."""


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
    return Generated(time.perf_counter() - began, output.sequences.shape[1] - longest, peak(read_memory(device)))


def time_generate(model: Model, slots: int, context: int, steps: int) -> Generated | None:
    """Time `steps` decoding steps of `slots` rows, the pass over the prompts left out; None where memory does not
    suffice."""
    prompts = random_prompts(model, slots, lengths(context, steps)[0])
    try:
        generate(model, prompts, 3, ALPHA, ends=False)  # what is loaded and allocated at first use
        short = generate(model, prompts, 1, ALPHA, ends=False)
        long = generate(model, prompts, steps + 1, ALPHA, ends=False)
    except RuntimeError as error:
        if out_of_memory(error) is None:
            raise
        return None
    return Generated(long.seconds - short.seconds, steps, long.peak_bytes)


@dataclass(frozen=True)
class DecodingStep:
    """A step of the engine with all slots busy, host loop included."""

    slots: int
    ms: float
    tokens_per_second: float
    execution: str
    waits: float | None
    """Share of the time in which the device waited for the host, at most; None where nothing is enqueued ahead."""
    engine_seconds: float
    """To make the engine: self-check, measurement of sizes, compilation and capture."""
    first_token_seconds: float
    """From the submission of all prompts to the first token."""
    peak_bytes: int
    """Peak of device memory since the engine was begun, weights included; on a CPU the process's."""


def time_decoding(
    model: Model, config: EngineConfig, slots: int | None, context: int, steps: int
) -> tuple[DecodingStep, str]:
    """Time `steps` steps of a new engine of `slots` slots (None: as many as fit), all of them busy; returns the
    engine's notes on its memory as well.

    Raises UserError where not even one slot fits.
    """
    length, new = lengths(context, steps)
    release(model.device)
    reset_peak(model.device)
    began = time.perf_counter()
    engine = Engine.build(prepare(model), config, slots=slots, max_length=length + new, sequences=1)
    made = time.perf_counter()
    count = engine.counters().slots
    if engine.idle is not None:
        engine.idle.reset()
    marks: dict[int, tuple[float, float]] = {}

    def mark(tokens: Sequence[int]) -> bool:
        """A stop rule that never stops: it sees every token as it arrives, again if memory ran out meanwhile."""
        marks[len(tokens)] = time.perf_counter(), 0.0 if engine.idle is None else engine.idle.seconds
        return False

    chains = []
    for row, tokens in enumerate(random_prompts(model, count, length)):
        prompt = Prompt(tuple(tokens), new, frozenset(), None if row else mark)
        chains.append(Chain(prompt, one_answer(prompt, row), sequences=1))
    submitted = time.perf_counter()
    engine.run(chains)
    seconds, waited = (after - before for before, after in zip(marks[WARM_UP], marks[WARM_UP + steps], strict=True))
    decoding = DecodingStep(
        slots=count,
        ms=1e3 * seconds / steps,
        tokens_per_second=count * steps / seconds,
        execution=engine.execution,
        waits=None if engine.idle is None else waited / seconds,
        engine_seconds=made - began,
        first_token_seconds=marks[1][0] - submitted,
        peak_bytes=peak(engine.memory()),
    )
    engine.close()
    return decoding, engine.notes


def one_answer(prompt: Prompt, row: int) -> Steps:
    """A chain that draws one answer of full length."""
    origin = len(prompt.token_ids)
    arrived = yield [Submit(row, Request(prompt.token_ids, prompt.max_new_tokens, ALPHA, RandomKey(0, row, 0), origin))]
    assert arrived is not None
    _, drawn = arrived
    return Sample(drawn.tokens, drawn.log_q, drawn.log_z, drawn.ended, ChainFigures())
