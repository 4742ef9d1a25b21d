"""Drives a chain with many requests in flight on a toy language model; completions arrive in any order.

Not `toy.ToyEngine`, though it reads operations in the same way: that has slots, limits and floors as the engine does;
here all requests run at once, what is held is counted and must be the whole prefix, and thousands of particles draw by
keys that no table holds.
"""

from __future__ import annotations

import itertools
import random
from bisect import bisect_right
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from evals import rng
from evals.rng import Purpose, RandomKey
from evals.types import Completion, Drop, Ended, Handle, Request, Sample, Sampler, SamplingContext, Steps, Submit
from support.toy import ToyLM, uniform


class Crowd:
    """`order` is how requests in flight are answered: first in first out, last in first out, or shuffled."""

    def __init__(self, model: ToyLM, seed: int, order: str = "fifo") -> None:
        self.model, self.seed, self.order = model, seed, order
        self.shuffle = random.Random(0)
        self.handles = itertools.count()
        self.requests: list[Request] = []
        self.most_held = 0
        self.generated = 0
        self.law = lru_cache(maxsize=None)(self.law_at)

    def run(self, sampler: Sampler, problem_id: int = 0, vote: Any = None) -> Sample:
        key, context = RandomKey(self.seed, problem_id, 0), SamplingContext(vote=vote)
        return self.drive(sampler.chain(self.model.prompt(), key, context))

    def drive(self, steps: Steps) -> Sample:
        held: dict[Handle, tuple[int, ...]] = {}
        in_flight: list[tuple[Hashable, Request]] = []
        arrival = None
        try:
            while True:
                for operation in steps.send(arrival):
                    match operation:
                        case Submit(tag, request):
                            assert tag not in dict(in_flight)
                            if request.parent is not None:
                                assert held[request.parent] == request.prefix
                            in_flight.append((tag, request))
                        case Drop(handle):
                            del held[handle]
                        case other:
                            raise AssertionError(f"a crowd keeps and cancels nothing: {other}")
                if self.order == "shuffled":
                    self.shuffle.shuffle(in_flight)
                tag, request = in_flight.pop(-1 if self.order == "lifo" else 0)
                completion = self.complete(request)
                assert completion.handle is not None
                held[completion.handle] = request.prefix + completion.tokens
                self.most_held = max(self.most_held, len(held))
                arrival = (tag, completion)
        except StopIteration as stop:
            assert not in_flight
            return stop.value

    def law_at(self, answer: tuple[int, ...], alpha: float) -> tuple[list[float], list[float], float]:
        log_q, log_z = self.model.log_law(answer, alpha)
        return np.cumsum(np.exp(log_q)).tolist(), log_q.tolist(), min(log_z, 0.0) if alpha >= 1 else log_z

    def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        answer = request.prefix[request.origin :]
        start, log_q, log_z = len(answer), [], []
        draw = rng.uniform if request.key.sample else uniform  # of particles there are too many for the table
        ended: Ended | None = None
        while ended is None:
            cumulative, law, normaliser = self.law(answer, request.alpha)
            u = draw(request.key, len(answer), Purpose.TOKEN) * cumulative[-1]
            token = min(bisect_right(cumulative, u), len(law) - 1)
            answer = (*answer, token)
            log_q.append(law[token])
            log_z.append(normaliser)
            ended = self.model.ended(answer)
            if ended is None and len(log_q) == request.max_new:
                ended = "length"
        self.generated += len(log_q)
        prefilled = 0 if request.parent is not None else len(request.prefix) - 1
        handle = Handle(next(self.handles))
        return Completion(answer[start:], np.array(log_q), np.array(log_z), ended, handle, prefilled)


class Enumerated(NamedTuple):
    """All complete answers with p(x)^alpha normalised, q(x), and the log of the weight p(x)^alpha / q(x)."""

    answers: list[tuple[int, ...]]
    target: np.ndarray
    q: np.ndarray
    log_w: np.ndarray


def enumerated(model: ToyLM, alpha: float) -> Enumerated:
    answers = list(model.complete())
    statistics = [model.statistics(answer, alpha) for answer in answers]
    q = np.exp([log_q.sum() for log_q, _ in statistics])
    log_w = np.array([log_z.sum() for _, log_z in statistics])
    target = model.target(alpha)
    return Enumerated(answers, np.array([target[answer] for answer in answers]), q, log_w)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Total variation."""
    return float(np.abs(one - other).sum()) / 2


def mean_weights(samples: list[Sample], answers: list[tuple[int, ...]]) -> np.ndarray:
    """Share of the weight that lies on every answer, averaged over samples: the law of the drawn answer, less noise."""
    index = {answer: i for i, answer in enumerate(answers)}
    found = np.zeros(len(answers))
    for sample in samples:
        for tokens, weight in sample.weighted:
            found[index[tokens]] += weight / len(samples)
    return found


def assert_same(one: Sample, other: Sample, but: tuple[str, ...] = ()) -> None:
    """Bit for bit, except for these figures of the chain."""
    assert (one.tokens, one.ended, one.weighted) == (other.tokens, other.ended, other.weighted)
    assert one.log_q.tobytes() == other.log_q.tobytes()
    assert one.log_z.tobytes() == other.log_z.tobytes()
    first, second = ({k: v for k, v in sample.chain.reported().items() if k not in but} for sample in (one, other))
    assert first == second
