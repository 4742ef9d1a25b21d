"""Compares GraphDecoder with EagerDecoder on the same chains, over any kernels: their twins in torch
(test_graph_decoder.py), the kernels in Triton's interpreter (graph_decoder_interpreted.py), or CUDA graphs
(test_model_families_gpu.py). Not collected by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from evals.engine.engine import Engine
from evals.engine.graph_decoder import GraphDecoder
from evals.engine.kv_cache import PagePool
from evals.rng import Purpose, uniform
from evals.types import Chain, Completion, Prompt, Request, Sample, Steps, Submit
from support.pages import audit
from support.tiny_models import PACKED, Pair, cache_of, engine


class Results(NamedTuple):
    """The completions that chains received, and the samples that they returned."""

    log: dict[Request, Completion]
    """By request, without its fields that depend on rounding or on the engine."""
    samples: list[Sample]


def lagging(pair: Pair, slots: int, max_length: int = 160, num_pages: int | None = None, **settings: Any) -> Engine:
    """An engine that decodes by GraphDecoder, kernel by kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evals.engine.engine.layout", lambda device: PACKED)
        on = engine(pair.model, slots, max_length, num_pages, **settings)
    on._decoder = GraphDecoder(
        pair.model, cache_of(on), slots, PagePool.pages_for(0, max_length), "graphs", graphs=False
    )
    return on


def recorded(steps: Steps, log: dict[Request, Completion]) -> Steps:
    """The same chain, which writes its completions to `log`, by request."""
    requests: dict[Any, Request] = {}
    arrival = None
    while True:
        try:
            operations = steps.send(arrival)
        except StopIteration as stop:
            return stop.value
        requests |= {operation.tag: operation.request for operation in operations if isinstance(operation, Submit)}
        arrival = yield operations
        if arrival is not None:
            tag, found = arrival
            log[requests[tag]._replace(parent=None, give_up=None)] = found


def answers(on: Engine, prompts: Sequence[Prompt], steps: Callable[[int, Prompt], Steps]) -> Results:
    """Run these chains and return what they received; checks that all pages are free again."""
    log: dict[Request, Completion] = {}
    samples = on.run([Chain(to, recorded(steps(i, to), log)) for i, to in enumerate(prompts)])
    audit(on._pool)
    assert on.counters().kv_pages_used == 0
    return Results(log, samples)


def assert_same(pair: Pair, ours: Results, theirs: Results, tolerance: float = 1e-4, edge: float = 1e-5) -> int:
    """Same tokens, statistics and endings; returns the requests that both have. What was cancelled may be shorter.

    A token may differ where its uniform lies within `edge` of an edge of the CDF; what follows it is not compared.
    """
    both, edges = ours.log.keys() & theirs.log.keys(), 0
    for request in both:
        one, other = ours.log[request], theirs.log[request]
        length = min(len(one.tokens), len(other.tokens))
        equal = next((i for i in range(length) if one.tokens[i] != other.tokens[i]), length)
        np.testing.assert_allclose(one.log_q[:equal], other.log_q[:equal], atol=tolerance)
        np.testing.assert_allclose(one.log_z[:equal], other.log_z[:equal], atol=tolerance)
        if equal < length:
            assert at_an_edge(pair, request, one.tokens[:equal], {one.tokens[equal], other.tokens[equal]}, edge)
            edges += 1
        elif "cancelled" not in (one.ended, other.ended):
            assert (one.tokens, one.ended) == (other.tokens, other.ended)
    if not edges:
        assert [sample.tokens for sample in ours.samples] == [sample.tokens for sample in theirs.samples]
    return len(both)


def at_an_edge(pair: Pair, request: Request, before: tuple[int, ...], tokens: set[int], edge: float) -> bool:
    """Whether rounding explains that either of two tokens was drawn after `before`."""
    logits = pair.logits([*request.prefix, *before])[-1].double()
    low, high = sorted(tokens)
    if np.isinf(request.alpha):
        return bool((logits[low] - logits[high]).abs() < edge)
    weights = (request.alpha * logits).softmax(-1)
    if request.exclude is not None and not before:
        weights[request.exclude] = 0
    cumulative = (weights / weights.sum()).cumsum(-1)
    drawn = uniform(request.key, len(request.prefix) + len(before) - request.origin, Purpose.TOKEN)
    return bool((cumulative[low:high] - drawn).abs().max() < edge)


def doubled(answer: Sequence[int]) -> bool:
    """A stop rule: the last two tokens are equal."""
    return len(answer) > 1 and answer[-1] == answer[-2]


def state(decoder: GraphDecoder) -> list[torch.Tensor]:
    """A copy of what the device knows of its rows."""
    return [part.clone() for part in (decoder._scalars, decoder._keys, decoder._table)]
