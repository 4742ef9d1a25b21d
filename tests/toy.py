"""Language models small enough to enumerate, and a scripted engine that answers a chain's requests with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import log

import numpy as np

from evals.rng import Purpose, uniform
from evals.types import Completion, Drop, Ended, Handle, Keep, Prompt, Request, Sample, Steps, Submit

EOS = 0
PROMPT = (9,)


class ToyLM:
    """Random logits for every prefix over `vocabulary` tokens (0 ends the answer), answers cut at `horizon`."""

    def __init__(self, seed: int, vocabulary: int = 3, horizon: int = 4, spread: float = 1.0, stop: tuple = ()) -> None:
        self.vocabulary, self.horizon, self.stop = vocabulary, horizon, stop
        rng = np.random.default_rng(seed)
        self.table = {
            prefix: spread * rng.standard_normal(vocabulary)
            for n in range(horizon)
            for prefix in itertools.product(range(vocabulary), repeat=n)
        }

    def prompt(self) -> Prompt:
        return Prompt(PROMPT, self.horizon, frozenset({EOS}), self.stopped if self.stop else None)

    def stopped(self, answer: Sequence[int]) -> bool:
        n = len(self.stop)
        return any(tuple(answer[i : i + n]) == self.stop for i in range(len(answer) - n + 1))

    def ended(self, answer: tuple[int, ...]) -> Ended | None:
        if answer and answer[-1] == EOS:
            return "eos"
        if self.stop and self.stopped(answer):
            return "stop"
        return "length" if len(answer) == self.horizon else None

    def log_law(self, prefix: tuple[int, ...], alpha: float) -> tuple[np.ndarray, float]:
        """log q over the vocabulary and log Z at this prefix."""
        logits = self.table[prefix]
        log_p = logits - np.logaddexp.reduce(logits)
        log_z = float(np.logaddexp.reduce(alpha * log_p))
        return alpha * log_p - log_z, log_z

    def complete(self, prefix: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
        """Every complete answer that starts with `prefix`."""
        if self.ended(prefix):
            yield prefix
            return
        for token in range(self.vocabulary):
            yield from self.complete((*prefix, token))

    def statistics(self, answer: tuple[int, ...], alpha: float) -> tuple[np.ndarray, np.ndarray]:
        laws = [self.log_law(answer[:t], alpha) for t in range(len(answer))]
        return np.array([law[0][v] for law, v in zip(laws, answer, strict=True)]), np.array([law[1] for law in laws])

    def target(self, alpha: float) -> dict[tuple[int, ...], float]:
        """p(x)^alpha over all complete answers, normalised."""
        answers = list(self.complete())
        log_weights = np.array([sum(self.statistics(x, 1.0)[0]) * alpha for x in answers])
        weights = np.exp(log_weights - np.logaddexp.reduce(log_weights))
        return dict(zip(answers, weights, strict=True))


class ToyEngine:
    """Answers the requests of one chain at a time, token by token, with the engine's keys and rules."""

    def __init__(self, model: ToyLM, seed: int) -> None:
        self.model, self.seed = model, seed
        self.held: dict[Handle, tuple[int, ...]] = {}
        self.parents: dict[Handle, Handle] = {}
        self.requests: list[Request] = []
        self.handles = itertools.count()
        self.generated = 0

    def run(self, steps: Steps) -> Sample:
        arrival = None
        try:
            while True:
                operations = steps.send(arrival)
                arrival = None
                for operation in operations:
                    if isinstance(operation, Submit):
                        arrival = (operation.tag, self.complete(operation.request))
                    elif isinstance(operation, Keep):
                        del self.held[self.parents.pop(operation.handle)]
                    elif isinstance(operation, Drop):
                        del self.held[operation.handle]
        except StopIteration as stop:
            return stop.value

    def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        if request.parent is not None:
            assert self.held[request.parent][: len(request.prefix)] == request.prefix
        answer = request.prefix[request.origin :]
        start = len(answer)
        log_q, log_z = [], []
        ended: Ended | None = None
        running = 0.0
        while ended is None:
            law, normaliser = self.model.log_law(answer, request.alpha)
            weights = np.exp(law)
            if len(answer) == start and request.exclude is not None:
                weights[request.exclude] = 0.0
            cumulative = np.cumsum(weights)
            u = uniform(self.seed, request.key, len(answer), Purpose.TOKEN) * cumulative[-1]
            token = min(int(np.searchsorted(cumulative, u, side="right")), len(law) - 1)
            answer = (*answer, token)
            if log_z:
                running += min(normaliser, 0.0)
            log_q.append(law[token])
            log_z.append(min(normaliser, 0.0))
            ended = self.model.ended(answer)
            if ended is None and running - log(len(answer) + 1) < request.floor:
                ended = "floor"
        self.generated += len(answer) - start
        assert len(answer) - start <= request.max_new
        handle = Handle(next(self.handles))
        if request.parent is not None:
            self.parents[handle] = request.parent
        self.held[handle] = request.prefix + answer[start:]
        prefilled = 0 if request.parent is not None else len(request.prefix) - 1
        return Completion(answer[start:], np.array(log_q), np.array(log_z), ended, handle, prefilled)
