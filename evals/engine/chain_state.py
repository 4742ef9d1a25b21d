"""The state of a chain in the engine: its requests in flight, the sequences that it holds, the pages reserved for it.

**Pages.** A chain is guaranteed room for as many sequences of full length as it says it needs (`Chain.sequences`). Its
*reservation* is that guarantee, or what it has if that is more, together with what its older requests in flight still
need where younger ones got their pages first. As long as all reservations fit into the pool, the primary (oldest)
request of every chain finds its pages free, whatever the others do: no chain waits for another, so no deadlock.
"""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future
from math import inf, isnan
from typing import Any

import numpy as np

from evals.engine.kv_cache import Allocation, PagePool
from evals.rng import uniforms
from evals.types import Chain, Ended, Handle, Prompt, Request, Sample

UNIFORMS_AT_ONCE = 64
"""Counters hashed in one call; one at a time costs as much as all of these."""


def validate(request: Request, context_length: int, vocab_size: int) -> None:
    """Check a request; raises ValueError naming the first field that the engine cannot serve."""
    length = len(request.prefix)
    if not length:
        raise ValueError("a request needs a prefix of at least one token")
    if request.max_new < 1:
        raise ValueError(f"a request for {request.max_new} new tokens: max_new is at least 1")
    if length + request.max_new > context_length:
        raise ValueError(f"{length} + {request.max_new} tokens exceed the engine's longest sequence, {context_length}")
    if not 0 <= request.origin <= length:
        raise ValueError(f"origin {request.origin} lies outside the prefix of {length} tokens")
    if isnan(request.alpha) or request.alpha <= 0:
        raise ValueError(f"alpha is {request.alpha}; it has to be positive")
    if request.top_k < 0 or not 0 < request.top_p <= 1:
        raise ValueError(f"top_k is {request.top_k} (0 or more), top_p {request.top_p} (above 0, at most 1)")
    if not 0 <= min(request.prefix) <= max(request.prefix) < vocab_size:
        raise ValueError(f"the prefix has a token outside the vocabulary of {vocab_size}")
    if request.exclude is not None and not 0 <= request.exclude < vocab_size:
        raise ValueError(f"the excluded token {request.exclude} is outside the vocabulary of {vocab_size}")


class DecodeState:
    """A request that is decoded token by token, and its tokens so far; `token` at `position` is fed next."""

    def __init__(self, request: Request, prompt: Prompt, allocation: Allocation | None = None) -> None:
        self.request, self.prompt = request, prompt
        self.allocation = allocation
        """Its sequence and pages; None while it waits for them."""
        self.prefilled = 0
        self.token, self.position = request.prefix[-1], len(request.prefix) - 1
        self.tokens: list[int] = []
        self.log_q: list[float] = []
        self.log_z: list[float] = []
        self._answer = list(request.prefix[request.origin :])
        self._watch = None if request.give_up is None else request.give_up()
        self._uniforms: list[float] = []

    @property
    def pages(self) -> tuple[int, ...]:
        """Its pages in order of position."""
        return () if self.allocation is None else self.allocation.pages

    @property
    def sequence(self) -> tuple[int, ...]:
        """All tokens, the prefix included."""
        return self.request.prefix + tuple(self.tokens)

    @property
    def exclude(self) -> int:
        """The token that the next draw must avoid, -1 for none."""
        return -1 if self.tokens or self.request.exclude is None else self.request.exclude

    def uniform(self) -> float:
        """The uniform of the next token: a function of the key and its position in the answer alone."""
        index = len(self.tokens) % UNIFORMS_AT_ONCE
        if index == 0:
            positions = len(self._answer) + np.arange(UNIFORMS_AT_ONCE)
            seed, *words = self.request.key
            self._uniforms = uniforms(seed, np.broadcast_to(words, (UNIFORMS_AT_ONCE, 3)), positions).tolist()
        return self._uniforms[index]

    def add(self, token: int, log_q: float, log_z: float) -> Ended | None:
        """Append a drawn token; returns why the request has ended, or None if it goes on.

        Raises FloatingPointError for statistics that are not numbers.
        """
        if log_q != log_q or not -inf < log_z < inf:  # in Python itself: this runs for every token
            raise FloatingPointError(
                f"nothing can be drawn at position {self.position + 1}: log q {log_q}, log Z {log_z} (the logits are "
                "NaN or infinite, or leave no token that is allowed)"
            )
        self.tokens.append(token)
        self.log_q.append(log_q)
        self.log_z.append(log_z)
        self._answer.append(token)
        self.token, self.position = token, self.position + 1
        if token in self.prompt.eos_ids:
            return "eos"
        if self.prompt.stopped is not None and self.prompt.stopped(self._answer):
            return "stop"
        if len(self.tokens) == self.request.max_new:
            return "length"
        if self._watch is not None and self._watch(log_q, log_z):
            return "given_up"
        return None


Drawn = tuple[Any, int, float, float]
"""A decode state that was given to `step`, its next token, and the token's log q and log Z in nats."""


class ActiveRequest(DecodeState):
    """A request in flight: it waits, or runs in a slot. If it is preempted, a new object takes its place."""

    def __init__(
        self, state: ChainState, tag: Hashable, request: Request, number: int, parent_ref: Handle | None
    ) -> None:
        super().__init__(request, state.chain.prompt)
        self.state, self.tag = state, tag
        self.number = number
        """Order of arrival."""
        self.parent_ref = parent_ref
        """A reference to its parent's pages, which stay if the chain drops the parent meanwhile; None where its whole
        prefix has to be written."""
        self.limit = len(request.prefix) + request.max_new

    @property
    def start(self) -> int:
        """First position that it writes."""
        return 0 if self.parent_ref is None else len(self.request.prefix) - 1

    @property
    def own_pages(self) -> int:
        """Pages that it needs beyond its parent's."""
        return PagePool.pages_for(self.start, self.limit)

    @property
    def is_primary(self) -> bool:
        """Whether it is the oldest request in flight of its chain, whose pages are guaranteed."""
        return self.state.primary is self


class ChainState:
    """A chain with its future, its requests in flight, and the sequences that it holds."""

    def __init__(self, chain: Chain, longest: int) -> None:
        """`longest` is the length of the engine's longest sequence, in tokens."""
        self.chain = chain
        self.future: Future[Sample] = Future()
        self.held: dict[Handle, ActiveRequest] = {}
        """Requests that have ended and whose sequences it holds, by handle."""
        self.requests: dict[Hashable, ActiveRequest] = {}
        """Requests in flight by tag, oldest first."""
        prompt = chain.prompt
        self.full = PagePool.pages_for(0, min(len(prompt.token_ids) + prompt.max_new_tokens, longest))
        """Pages of its longest sequence."""
        self.guaranteed, self.reservation = chain.sequences * self.full, 0
        """Pages guaranteed to it, and pages that others cannot have now."""

    def end(self, outcome: Sample | BaseException) -> None:
        """Hand its sample, or its error, to whoever waits for it, unless they have cancelled it."""
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)

    @property
    def primary(self) -> ActiveRequest | None:
        """The oldest request in flight, None if there is none."""
        return next(iter(self.requests.values()), None)

    def reserved_pages(self, pool: PagePool, joining: ActiveRequest | None = None, *, speculative: bool = True) -> int:
        """Pages that others cannot have.

        With `joining`, if that request got its pages now; without `speculative`, if the speculative requests that run
        gave theirs back.

        A request that waits is owed its pages if a younger one, running or ended, has got some: it came first, and the
        chain may need its completion before it gives back what the younger one took.
        """
        requests = list(self.requests.values())
        running = {r: r.allocation.handle for r in requests if r.allocation and (speculative or r.is_primary)}
        served = [*running, *(r for handle, r in self.held.items() if pool.reaches(handle, 1))]
        newest = max((r.number for r in (*served, joining) if r is not None), default=-1)
        owed = [r.own_pages for r in requests if r not in running and r.number <= newest]
        handles = [*self.held, *running.values()]
        for active in requests:
            if active.parent_ref is not None and active.request.parent not in self.held:
                handles.append(active.parent_ref)
        if (len(handles) + len(owed)) * self.full <= self.guaranteed:
            return self.guaranteed
        return max(self.guaranteed, pool.distinct(handles) + sum(owed))
