"""The Metropolis-Hastings kernel for p(x)^alpha over complete answers, as pure functions.

One move: cut the answer x at position m with probability g_m / G(x), G(x) = sum of all g; draw a new ending from the
tempered law q(v | h) = softmax(alpha * logits) until the answer x' is complete; accept it with probability min(1, r),

    r = W(x') / W(x),    log W(x) = sum_{t > d} log Z_t - log G(x),    d = first position at which x' and x differ.

log Z_t = log sum_v p(v | h_t)^alpha depends on the prefix alone, and alpha log p(x_t | h_t) is log q(x_t | h_t) plus
log Z_t, so that all q cancel; up to d both answers share the prefix, so that these log Z cancel too. G is there because
x' is cut at m with probability g_m / G(x'); without it, uniform cuts would have the stationary law L(x) p(x)^alpha.

Cuts, all exact:
    uniform   g = 1, G = L, the number of tokens
    entropy   g_t = (-log Z_t)^kappa + EVERYWHERE: more often where the model is unsure (log Z is (1 - alpha) times the
              Renyi entropy of order alpha); a function of the prefix, so that g_m of the chosen cut cancels
    nonnull   g_m = 1 - prod_{t >= m} q_t, the chance that a new ending differs from the old one; the move is then drawn
              given that it does differ. Such moves may be counted: stopping the kernel of uniform cuts after so many
              moves that differ would not sample p^alpha.

Replay: the tokens of x were drawn from the same q as a new ending is, so that the new ending keeps x_t with
probability q(x_t | h_t), decided by a coin, and at the first coin that fails draws from q without x_t. This is q
exactly, and needs no forward pass for what is kept. If no coin fails, x' = x: a null move.

Early rejection: u is drawn first. Acceptance is log W(x') >= log u + log W(x). All log Z <= 0 for alpha >= 1 and G(x')
has a lower bound that only grows with x', so an unfinished x' below this floor is given up without changing a decision.
`watch` follows the sum and the bound token by token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import exp, fsum, inf, log, log1p
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.rng import Purpose, RandomKey, uniform, uniforms
from evals.samplers.base import State, pick
from evals.types import Watch

Cuts = Literal["uniform", "entropy", "nonnull"]

EVERYWHERE = 0.01
"""Added to every weight of an entropy cut, so that every position can be cut."""

MOVES_AT_ONCE, COINS_AT_ONCE = 12, 128
"""Moves and positions whose coins are drawn in one call."""

SLACK = 1e-6
"""Nats by which a floor lies below the decision's: an engine's sums round otherwise, and the decision is made here."""


class Move(NamedTuple):
    """A move before any token is drawn: where it cuts, what it redraws and when it is accepted."""

    cut: int
    """0-based position of the cut."""
    start: int
    """First position that is drawn anew; equal to the answer's length for a null move."""
    exclude: int | None
    """The token that a failed coin excludes at `start`."""
    log_u: float
    """The proposal is accepted iff its log r reaches this."""

    def null(self, state: State) -> bool:
        """True when the proposal is known to be the state itself."""
        return self.start == len(state.tokens)


class Kernel(NamedTuple):
    """An exact transition kernel for answers that are complete at EOS, at a stop string or at `horizon` tokens."""

    horizon: int
    cuts: Cuts = "uniform"
    entropy_power: float = 1.0
    replay: bool = True
    """Has to be on for nonnull cuts."""

    def propose(self, state: State, key: RandomKey) -> Move:
        """The move that `key` names, with its cut, its coins and its u: a pure function."""
        length = len(state.tokens)
        log_u = log1p(-uniform(key, 0, Purpose.ACCEPT))
        u = uniform(key, 0, Purpose.CUT)
        if self.cuts == "uniform":
            cut = min(int(u * length), length - 1)
        else:
            weights = self.cut_weights(state)
            if not weights.any():  # nonnull cuts where every q is 1: no other answer can be drawn
                return Move(length, length, None, log_u)
            cut = pick(weights, u)
        if self.cuts == "nonnull":
            start = certain_divergence(state.log_q, cut, uniform(key, 0, Purpose.COIN))
        elif self.replay:
            start = first_divergence(state.log_q, cut, coins(key, cut, length))
        else:
            start = cut
        exclude = state.tokens[start] if self.replay and start < length else None
        return Move(cut, start, exclude, log_u)

    def cut_weights(self, state: State) -> NDArray[np.float64]:
        """[L] the weight g of a cut at every position."""
        match self.cuts:
            case "uniform":
                return np.ones(len(state.tokens))
            case "entropy":
                return np.maximum(-state.log_z, 0.0) ** self.entropy_power + EVERYWHERE
            case "nonnull":
                return -np.expm1(np.minimum(log_q_from(state.log_q), 0.0))

    def log_normaliser(self, state: State) -> float:
        """log G of an answer, -inf where G is 0."""
        total = float(len(state.tokens) if self.cuts == "uniform" else self.cut_weights(state).sum())
        return log(total) if total > 0 else -inf

    def log_weight(self, state: State, start: int) -> float:
        """log W of an answer in nats, from the log Z after position `start`."""
        return fsum(state.log_z[start + 1 :]) - self.log_normaliser(state)

    def log_ratio(self, state: State, proposal: State, start: int) -> float:
        """log r of a complete proposal that shares the tokens before `start`."""
        return self.log_weight(proposal, start) - self.log_weight(state, start)

    def longest(self, state: State) -> int:
        """Tokens of the longest proposal from an answer."""
        return self.horizon

    def give_up(self, state: State, move: Move) -> Callable[[], Watch]:
        """What tells that the proposal of `move` can no longer be accepted, with a lower bound of G by the cuts."""
        start = move.start
        floor = move.log_u + self.log_weight(state, start) - SLACK
        match self.cuts:
            case "uniform":
                return lambda: watch(floor, start, longer)
            case "entropy":  # G of the proposal is at least that of what it shares with the state
                floor += log(float(np.sum(self.cut_weights(state)[: start + 1])))
                return lambda: watch(floor, start)
            case "nonnull":  # C of the kept prefix: sum over m of q_m ... q_{start - 1}
                kept = float(np.sum(np.exp(log_q_from(state.log_q[:start]))))
                return lambda: watch(floor, start, less_null(kept))


def watch(floor: float, start: int, log_least: Callable[[int, float], float] | None = None) -> Watch:
    """The watch over a proposal that is drawn from position `start` on, which cannot be accepted any more once the sum
    of its log Z after `start`, less the log of the least that its G can be, falls below `floor`.

    `log_least` maps the length of the unfinished answer and its last log q to that log; None stands for 0.
    """
    total, length = 0.0, start

    def hopeless(log_q: float, log_z: float) -> bool:
        nonlocal total, length
        if length > start:
            total += log_z
        length += 1
        return total < floor if log_least is None else total - log_least(length, log_q) < floor

    return hopeless


def longer(length: int, log_q: float) -> float:
    """Log of the least G of uniform cuts: an unfinished answer gets one token more, at least."""
    return log(length + 1)


def less_null(kept: float) -> Callable[[int, float], float]:
    """Log of the least G of nonnull cuts after a prefix whose C is `kept`: G = L - C_L with C_t = q_t (1 + C_{t-1}),
    which never falls as the answer grows."""
    carry = kept

    def log_least(length: int, log_q: float) -> float:
        nonlocal carry
        carry = exp(log_q) * (1 + carry)
        return log(length - carry) if length > carry else -inf

    return log_least


def acceptance_probability(log_ratio: float) -> float:
    """The acceptance probability min(1, r)."""
    return exp(min(0.0, log_ratio))


def coins(key: RandomKey, cut: int, length: int) -> NDArray[np.float64]:
    """The uniforms of the replay coins at positions cut .. length - 1."""
    seed, problem, sample, move = key
    padded = -(-length // COINS_AT_ONCE) * COINS_AT_ONCE
    return coins_at_once(seed, problem, sample, move // MOVES_AT_ONCE, padded)[move % MOVES_AT_ONCE, cut:length]


@lru_cache(maxsize=512)  # of so many chains at a time; 12 KiB each for answers of up to 128 tokens
def coins_at_once(seed: int, problem: int, sample: int, block: int, length: int) -> NDArray[np.float64]:
    """[MOVES_AT_ONCE, length] the coins of a block of moves: hashing a counter costs less than the call for it."""
    keys = [(problem, sample, move) for move in range(block * MOVES_AT_ONCE, (block + 1) * MOVES_AT_ONCE)]
    positions = np.tile(np.arange(length), MOVES_AT_ONCE)
    return uniforms(seed, np.repeat(keys, length, axis=0), positions, Purpose.COIN).reshape(MOVES_AT_ONCE, length)


def first_divergence(log_q: NDArray[np.float64], cut: int, flips: NDArray[np.float64]) -> int:
    """The first position from the cut on whose coin fails (u >= q), or the answer's length if all hold."""
    failed = flips >= np.exp(log_q[cut:])
    return cut + int(np.argmax(failed)) if failed.any() else len(log_q)


def certain_divergence(log_q: NDArray[np.float64], cut: int, u: float) -> int:
    """The first position whose coin fails, given that one from the cut on does, by inverse CDF of a u in [0, 1)."""
    failed_by = -np.expm1(np.cumsum(np.minimum(log_q[cut:], 0.0)))
    return cut + int(np.argmax(failed_by > u * failed_by[-1]))


def log_q_from(log_q: NDArray[np.float64]) -> NDArray[np.float64]:
    """[L] sum of log q from every position to the end."""
    return np.cumsum(log_q[::-1])[::-1]
