"""The Metropolis-Hastings kernel for p(x)^alpha over complete answers, as pure functions. Knows no engine and no chain.

One move: cut the answer x at a position drawn uniformly from its L tokens, draw a new ending from the tempered law
q(v | h) = softmax(alpha * logits) until the answer x' is complete, accept with probability min(1, r), where

    r = W(x') / W(x),    log W(x) = sum_{t > d} log Z_t - log L,    d = first position at which x' and x differ.

log Z_t = log sum_v p(v | h_t)^alpha depends on the prefix alone, and alpha log p(x_t | h_t) is log q(x_t | h_t) plus
log Z_t, so that all q cancel; up to d both answers share the prefix, so that these log Z cancel too. L in W is there
because a cut has probability 1 / L in x and 1 / L' in x'; without it the stationary law is L(x) p(x)^alpha.

Replay: the tokens of x were drawn from the same q as a new ending is, so that the new ending keeps x_t with
probability q(x_t | h_t), decided by a coin, and at the first coin that fails draws from q without x_t. This is q
exactly, and needs no forward pass for what is kept. If no coin fails, x' = x: a null move.

Early rejection: u is drawn first. log r >= log u is the same as log W(x') >= floor with floor = log u + log W(x); as
every log Z <= 0 for alpha >= 1, an unfinished x' that has passed the floor can be given up without changing a decision.
"""

from __future__ import annotations

from math import exp, fsum, log, log1p
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.rng import Purpose, uniform, uniforms
from evals.samplers.base import Key
from evals.types import Ended


class State(NamedTuple):
    """A complete answer with the statistics of its L tokens under the unrestricted proposal."""

    tokens: tuple[int, ...]
    log_q: NDArray[np.float64]
    log_z: NDArray[np.float64]
    ended: Ended


class Plan(NamedTuple):
    """What a move asks for before any token is drawn."""

    cut: int
    """0-based position of the cut."""
    start: int
    """First position that is drawn anew; equal to the answer's length for a null move."""
    exclude: int | None
    """The token that a failed coin excludes at `start`."""
    floor: float
    """The draft is accepted iff its log weight reaches this."""

    def null(self, state: State) -> bool:
        """True when every coin held: the proposal is the state itself."""
        return self.start == len(state.tokens)


def plan(state: State, seed: int, key: Key, replay: bool) -> Plan:
    """The move that `key` names, from `state`: its cut, its coins and its floor. A pure function."""
    length = len(state.tokens)
    cut = cut_position(length, uniform(seed, key, 0, Purpose.CUT))
    start = first_divergence(state.log_q, cut, coins(seed, key, cut, length)) if replay else cut
    exclude = state.tokens[start] if replay and start < length else None
    return Plan(cut, start, exclude, floor(state, start, uniform(seed, key, 0, Purpose.ACCEPT)))


def cut_position(length: int, u: float) -> int:
    """The cut (0-based) of a uniform u in [0, 1): uniform over the answer's tokens."""
    return int(length * u)


def coins(seed: int, key: Key, cut: int, length: int) -> NDArray[np.float64]:
    """The uniforms of the replay flips at positions cut .. length - 1."""
    positions = np.arange(cut, length)
    return uniforms(seed, np.broadcast_to(key, (len(positions), 3)), positions, Purpose.COIN)


def first_divergence(log_q: NDArray[np.float64], cut: int, flips: NDArray[np.float64]) -> int:
    """The first position from the cut on whose coin fails (u >= q), or the answer's length if all hold."""
    failed = flips >= np.exp(log_q[cut:])
    return cut + int(np.argmax(failed)) if failed.any() else len(log_q)


def log_weight(log_z_after: NDArray[np.float64], length: int) -> float:
    """log W of an answer of `length` tokens: sum of log Z after its first new token, less log length, in nats.

    Adds from left to right in float64, as the engine does when it compares a growing draft with the floor.
    """
    total = 0.0
    for value in log_z_after.tolist():
        total += value
    return total - log(length)


def floor(state: State, start: int, u: float) -> float:
    """log u + log W(state) for a u in [0, 1), taken as 1 - u so that its logarithm is finite."""
    return log1p(-u) + fsum(state.log_z[start + 1 :]) - log(len(state.tokens))


def acceptance(state: State, draft: State, start: int) -> float:
    """min(1, r) of a complete draft that shares the tokens before `start`; for tests and estimators."""
    length = len(draft.tokens)
    return exp(min(0.0, log_weight(draft.log_z[start + 1 :], length) - floor(state, start, 0.0)))


def spliced(state: State, start: int, tokens: tuple[int, ...], log_q: NDArray, log_z: NDArray, ended: Ended) -> State:
    """The answer that keeps the first `start` tokens of `state` and goes on with a completion's tokens and statistics.

    At `start` both share the prefix: the stored log Z stays, as recomputing it could differ in rounding.
    """
    kept = state.log_z[: start + 1]
    return State(
        tokens=state.tokens[:start] + tokens,
        log_q=np.concatenate([state.log_q[:start], log_q]),
        log_z=np.concatenate([kept, log_z[len(kept) - start :]]),
        ended=ended,
    )
