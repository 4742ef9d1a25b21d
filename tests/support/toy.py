"""Language models small enough to enumerate, and a scripted engine that answers a chain's requests with them."""

from __future__ import annotations

import copy
import itertools
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from evals.engine.chain_state import DecodeState
from evals.rng import Purpose, RandomKey, uniforms
from evals.types import Cancel, Completion, Drop, Ended, Handle, Keep, Prompt, Request, Sample, Steps, Submit

EOS = 0
PROMPT = (9,)
PROBLEMS_AT_ONCE, LONGEST = 256, 8


@lru_cache(maxsize=1024)
def table(seed: int, block: int, sample: int, move: int, purpose: Purpose) -> list[list[float]]:
    """[PROBLEMS_AT_ONCE, LONGEST] uniforms of a move of many problems: calling costs more than hashing."""
    first = block * PROBLEMS_AT_ONCE
    keys = [(problem, sample, move) for problem in range(first, first + PROBLEMS_AT_ONCE)]
    positions = np.tile(np.arange(LONGEST), PROBLEMS_AT_ONCE)
    found = uniforms(seed, np.repeat(keys, LONGEST, axis=0), positions, purpose)
    return found.reshape(PROBLEMS_AT_ONCE, LONGEST).tolist()


def row(key: RandomKey, purpose: Purpose) -> list[float]:
    """[LONGEST] the uniforms of `evals.rng` for this key."""
    seed, problem, sample, move = key
    return table(seed, problem // PROBLEMS_AT_ONCE, sample, move, purpose)[problem % PROBLEMS_AT_ONCE]


def uniform(key: RandomKey, position: int, purpose: Purpose) -> float:
    return row(key, purpose)[position]


class ToyLM:
    """Random logits for every prefix over `vocabulary` tokens (0 ends the answer), answers cut at `horizon`.

    With `forbidden` that share of the logits is -inf, though never all of a prefix.
    """

    def __init__(
        self, seed: int, vocabulary: int = 3, horizon: int = 4, spread: float = 1.0, stop: tuple = (),
        forbidden: float = 0.0,
    ) -> None:  # fmt: skip
        self.vocabulary, self.horizon, self.stop = vocabulary, horizon, stop
        self.laws: dict[tuple, tuple[np.ndarray, float]] = {}
        rng = np.random.default_rng(seed)
        self.table = {
            prefix: spread * rng.standard_normal(vocabulary)
            for n in range(horizon)
            for prefix in itertools.product(range(vocabulary), repeat=n)
        }
        for logits in self.table.values() if forbidden else ():
            logits[1:][rng.random(vocabulary - 1) < forbidden] = -np.inf

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

    def at(self, horizon: int) -> ToyLM:
        """The same model with answers cut at another horizon."""
        other = copy.copy(self)
        other.horizon = horizon
        return other

    def log_law(self, prefix: tuple[int, ...], alpha: float, top_k: int = 0) -> tuple[np.ndarray, float]:
        """log q over the vocabulary (of the `top_k` likeliest tokens, if not 0) and log Z at this prefix."""
        where = prefix, alpha, top_k
        if where not in self.laws:
            logits = self.table[prefix]
            log_p = logits - np.logaddexp.reduce(logits)
            kept = log_p if not top_k else np.where(log_p >= np.sort(log_p)[-top_k:][0], log_p, -np.inf)
            log_z = float(np.logaddexp.reduce(alpha * kept))
            self.laws[where] = alpha * kept - log_z, log_z
        return self.laws[where]

    def complete(self, prefix: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
        """Every complete answer that starts with `prefix` and can be drawn."""
        if self.ended(prefix):
            yield prefix
            return
        for token in range(self.vocabulary):
            if self.table[prefix][token] > -np.inf:
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
    """Answers the requests of one chain at a time with the engine's own slots: its keys, its limits, its watch.

    `slots` is the most that run at once; those that the chain does not use stand idle. Completions arrive in an order
    that `order` shuffles, cancelled ones too.
    """

    def __init__(self, model: ToyLM, seed: int, slots: int = 1, order: int = 0) -> None:
        self.model, self.seed, self.slots = model, seed, slots
        self.order = np.random.default_rng(order)
        self.held: dict[Handle, tuple[int, ...]] = {}
        self.parents: dict[Handle, Handle] = {}
        self.requests: list[Request] = []
        self.handles = itertools.count()
        self.generated = self.most = 0
        self.law = lru_cache(maxsize=None)(self.law_of)

    def run(self, steps: Steps, prompt: Prompt | None = None) -> Sample:
        prompt = prompt or self.model.prompt()
        in_flight: dict[Hashable, Request] = {}
        cancelled: list[tuple[Hashable, Completion]] = []
        arrival = None
        try:
            while True:
                for operation in steps.send(arrival):
                    match operation:
                        case Submit(tag, request):
                            assert tag not in in_flight
                            if request.parent is not None:
                                assert self.held[request.parent][: len(request.prefix)] == request.prefix
                            self.requests.append(request)
                            in_flight[tag] = request
                        case Keep(handle):
                            self.held.pop(self.parents.pop(handle), None)
                        case Drop(handle):
                            del self.held[handle]
                        case Cancel(tag):
                            del in_flight[tag]
                            nothing = np.zeros(0)
                            cancelled.append((tag, Completion((), nothing, nothing, "cancelled", None, 0)))
                self.most = max(self.most, len(in_flight))
                if cancelled:
                    arrival = cancelled.pop(int(self.order.integers(len(cancelled))))
                else:
                    tag = list(in_flight)[int(self.order.integers(min(len(in_flight), self.slots)))]
                    done = self.complete(in_flight.pop(tag), prompt)
                    arrival = (tag, done._replace(idle=max(self.slots - len(in_flight), 0)))
        except StopIteration as stop:
            return stop.value

    def complete(self, request: Request, prompt: Prompt) -> Completion:
        slot = DecodeState(request, prompt)
        start = len(request.prefix)
        answer = request.prefix[request.origin :]
        ended: Ended | None = None
        while ended is None:
            cumulative, log_q, log_z = self.law(answer, request.alpha, request.top_k, slot.exclude)
            u = uniform(request.key, len(answer), Purpose.TOKEN)
            token = bisect_right(cumulative, u * cumulative[-1], hi=len(cumulative) - 1)
            ended = slot.add(token, log_q[token], log_z)
            answer = (*answer, token)
        self.generated += len(slot.tokens)
        assert len(slot.tokens) <= request.max_new
        handle = Handle(next(self.handles))
        if request.parent is not None:
            self.parents[handle] = request.parent
        self.held[handle] = request.prefix + tuple(slot.tokens)
        prefilled = 0 if request.parent is not None else start - 1
        return Completion(tuple(slot.tokens), np.array(slot.log_q), np.array(slot.log_z), ended, handle, prefilled)

    def law_of(
        self, answer: tuple[int, ...], alpha: float, top_k: int, exclude: int
    ) -> tuple[list[float], list[float], float]:
        """Cumulative weights without `exclude`, and log q and log Z with it."""
        log_q, log_z = self.model.log_law(answer, alpha, top_k)
        weights = np.exp(log_q)
        if exclude >= 0:
            weights[exclude] = 0.0
        last = int(np.flatnonzero(weights)[-1])
        return np.cumsum(weights)[: last + 1].tolist(), log_q.tolist(), min(log_z, 0.0)
