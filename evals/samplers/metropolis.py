"""The Metropolis-Hastings kernel for p(x)^alpha over complete answers, as pure functions. Knows no engine and no chain.

One move: cut the answer x at a position drawn uniformly from its L tokens, draw a new ending from the tempered law
q(v | h) = softmax(alpha * logits) until the answer x' is complete, accept with probability min(1, r),

    log r = sum_{t > cut} log Z'_t - sum_{t > cut} log Z_t + log L - log L'.

log Z_t = log sum_v p(v | h_t)^alpha depends on the prefix alone, and alpha log p(x_t | h_t) is log q(x_t | h_t) plus
log Z_t, so that all q cancel; at the cut itself both answers share the prefix, so that its log Z cancels too. The factor L / L'
is the ratio of the probabilities of choosing this cut in x and in x'; without it the stationary law is L(x) p(x)^alpha.
"""

from __future__ import annotations

from math import fsum, log, log1p
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.rng import Purpose, uniform
from evals.types import Ended


class State(NamedTuple):
    """A complete answer with the statistics of its L tokens under the proposal."""

    tokens: tuple[int, ...]
    log_q: NDArray[np.float64]
    log_z: NDArray[np.float64]
    ended: Ended


class Draws(NamedTuple):
    """The uniforms in [0, 1) that a move spends before any token is drawn."""

    cut: float
    accept: float


def draws(seed: int, key: tuple[int, int, int]) -> Draws:
    """The uniforms of the move that `key` names."""
    return Draws(uniform(seed, key, 0, Purpose.CUT), uniform(seed, key, 0, Purpose.ACCEPT))


def cut_position(length: int, u: float) -> int:
    """The first position (0-based) that is redrawn: uniform over the answer's tokens."""
    return int(length * u)


def log_ratio(state: State, draft: State, cut: int) -> float:
    """log r of accepting `draft`, which shares the tokens before `cut` with `state`, in nats."""
    gain = fsum(draft.log_z[cut + 1 :]) - fsum(state.log_z[cut + 1 :])
    return gain + log(len(state.tokens)) - log(len(draft.tokens))


def accepts(log_r: float, u: float) -> bool:
    """The Metropolis-Hastings test; 1 - u lies in (0, 1], so that its logarithm is finite."""
    return log1p(-u) <= log_r


def spliced(state: State, cut: int, tokens: tuple[int, ...], log_q: NDArray, log_z: NDArray, ended: Ended) -> State:
    """The answer that keeps the first `cut` tokens of `state` and goes on with a completion's tokens and statistics."""
    return State(
        tokens=state.tokens[:cut] + tokens,
        log_q=np.concatenate([state.log_q[:cut], log_q]),
        log_z=np.concatenate([state.log_z[:cut], log_z]),
        ended=ended,
    )
