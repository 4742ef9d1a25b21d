"""A request in its slot: the tokens so far, their uniforms, and the rules that end it. Knows no device and no pages."""

from __future__ import annotations

from collections.abc import Hashable
from math import exp, inf, isnan, log

import numpy as np

from evals.rng import uniforms
from evals.types import Ended, Prompt, Request

UNIFORMS_AT_ONCE = 64
"""Counters hashed in one call; one at a time costs as much as all of these."""


def validate(request: Request, context_length: int, vocab_size: int) -> None:
    """Raises ValueError naming the first field that the engine cannot serve."""
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
    if request.floor != -inf and (request.alpha < 1 or isnan(request.floor)):
        raise ValueError(f"a floor of {request.floor} at alpha {request.alpha}: log Z only falls for alpha >= 1")
    if request.bound not in ("length", "nonnull", "constant"):
        raise ValueError(f"bound is {request.bound!r}; it is length, nonnull or constant")
    if request.top_k < 0 or not 0 < request.top_p <= 1:
        raise ValueError(f"top_k is {request.top_k} (0 or more), top_p {request.top_p} (above 0, at most 1)")
    if not 0 <= min(request.prefix) <= max(request.prefix) < vocab_size:
        raise ValueError(f"the prefix has a token outside the vocabulary of {vocab_size}")
    if request.exclude is not None and not 0 <= request.exclude < vocab_size:
        raise ValueError(f"the excluded token {request.exclude} is outside the vocabulary of {vocab_size}")


class Slot:
    """One running request. `token` at `position` is what is fed next."""

    def __init__(self, tag: Hashable, request: Request, prompt: Prompt, seed: int) -> None:
        self.tag, self.request = tag, request
        self.token, self.position = request.prefix[-1], len(request.prefix) - 1
        self.tokens: list[int] = []
        self.log_q: list[float] = []
        self.log_z: list[float] = []
        self.pages: tuple[int, ...] = ()
        self.prefilled = 0
        self._prompt, self._seed = prompt, seed
        self._answer = list(request.prefix[request.origin :])
        self._sum = 0.0
        self._carry = request.carry
        self._uniforms: list[float] = []

    @property
    def exclude(self) -> int:
        """The token that the next draw must avoid, -1 for none."""
        return -1 if self.tokens or self.request.exclude is None else self.request.exclude

    def uniform(self) -> float:
        """The uniform of the next token: a function of seed, key and its position in the answer alone."""
        index = len(self.tokens) % UNIFORMS_AT_ONCE
        if index == 0:
            positions = len(self._answer) + np.arange(UNIFORMS_AT_ONCE)
            keys = np.broadcast_to(self.request.key, (UNIFORMS_AT_ONCE, 3))
            self._uniforms = uniforms(self._seed, keys, positions).tolist()
        return self._uniforms[index]

    def add(self, token: int, log_q: float, log_z: float) -> Ended | None:
        """Append a drawn token; says why the request is over, or None if it goes on.

        Raises FloatingPointError for statistics that are not numbers.
        """
        if log_q != log_q or not -inf < log_z < inf:  # in Python itself: this runs for every token
            raise FloatingPointError(
                f"nothing can be drawn at position {self.position + 1}: log q {log_q}, log Z {log_z} (the logits are "
                "NaN or infinite, or leave no token that is allowed)"
            )
        if self.tokens:
            self._sum += log_z
        if self.request.bound == "nonnull":
            self._carry = exp(log_q) * (1 + self._carry)
        self.tokens.append(token)
        self.log_q.append(log_q)
        self.log_z.append(log_z)
        self._answer.append(token)
        self.token, self.position = token, self.position + 1
        return self._over(token)

    def _over(self, token: int) -> Ended | None:
        if token in self._prompt.eos_ids:
            return "eos"
        if self._prompt.stopped is not None and self._prompt.stopped(self._answer):
            return "stop"
        if len(self.tokens) == self.request.max_new:
            return "length"
        if self.request.floor != -inf and self._sum - self._bound() < self.request.floor:
            return "floor"
        return None

    def _bound(self) -> float:
        """Log of the least that the normaliser G of the final answer can be, given that it is not complete yet.

        `length`: G = L, at least one token more than now. `nonnull`: G = L - C_L with C_t = q_t (1 + C_{t-1}), which
        never falls as the answer grows. `constant`: G = 1.
        """
        length = len(self._answer)
        match self.request.bound:
            case "length":
                return log(length + 1)
            case "nonnull":
                return log(length - self._carry) if length > self._carry else -inf
            case "constant":
                return 0.0
