"""What samplers share: answers with their statistics, random keys, waiting for completions, draws by weight."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evals.rng import RandomKey
from evals.settings import Count
from evals.types import ChainFigures, Completion, Drop, Ended, Handle, Operation, Prompt, Request, Sample, Submit

T = TypeVar("T")
Arrival = tuple[Hashable, Completion]
Part = Generator[list[Operation], Arrival | None, T]
"""A part of a chain, and what it comes to: `yield from` it."""
Weights = NDArray[np.float64]

Alpha = Annotated[float, Field(ge=1, le=1000, description="exponent of the target p^alpha")]
NumMoves = Annotated[
    int,
    Field(ge=0, le=100_000, description="Metropolis-Hastings moves per answer (power) or per block (paper)"),
]
NumCandidates = Annotated[
    int,
    Field(ge=1, le=4096, description="answers drawn per sample (best_of, majority, snis), or particles (smc)"),
]
Temperature = Annotated[float, Field(gt=0, le=100, description="temperature of the draws (temperature, majority)")]
TopK = Annotated[
    Count | None,
    Field(description="draw among the k most probable tokens only; 0: all (default: 50 for paper, else 0)"),
]
Coins = Annotated[bool, Field(description="keep the shared beginning of a proposal by coin flips, without the model")]
EarlyRejection = Annotated[bool, Field(description="give a proposal up once it can no longer be accepted")]


class State(NamedTuple):
    """An answer, complete or not, with log q and log Z of its L tokens, both as if no token were excluded."""

    tokens: tuple[int, ...]
    log_q: NDArray[np.float64]
    log_z: NDArray[np.float64]
    ended: Ended
    """`length` also while the answer is incomplete."""


EMPTY = State((), np.zeros(0), np.zeros(0), "length")


def whole(prompt: Prompt, alpha: float, key: RandomKey, top_k: int = 0, top_p: float = 1.0) -> Request:
    """The request for a whole answer, from its first token to its end."""
    origin = len(prompt.token_ids)
    return Request(prompt.token_ids, prompt.max_new_tokens, alpha, key, origin, top_k=top_k, top_p=top_p)


def sample(
    taken: Completion,
    drawn: Sequence[Completion],
    alpha: float,
    table: type[ChainFigures] = ChainFigures,
    weighted: tuple[tuple[tuple[int, ...], float], ...] = (),
    **figures: Any,
) -> Sample:
    """The sample of the answer `taken` among the whole answers `drawn` at `alpha`; `figures` are those of its `table`
    beside the ones that all samplers have."""
    chain = table(
        generated=sum(len(one.tokens) for one in drawn),
        prefilled=sum(one.prefilled for one in drawn),
        log_p=log_p(taken, alpha),
        **figures,
    )
    return Sample(taken.tokens, taken.log_q, taken.log_z, taken.ended, chain, weighted, alpha)


def arrival(operations: list[Operation]) -> Part[Arrival]:
    """Yield operations and wait for the next completion; returns it with its tag."""
    arrived = yield operations
    if arrived is None:
        raise RuntimeError("the engine resumed a chain that waits for a completion without one")
    return arrived


def ask(request: Request) -> Part[Completion]:
    """Submit one request and wait for its completion: `c = yield from ask(request)`."""
    _, completion = yield from arrival([Submit(request.key.move, request)])
    return completion


def gather(submits: Sequence[Submit], drops: Sequence[Drop] = (), *, hold: bool) -> Part[dict[Hashable, Completion]]:
    """Submit all, then drop, then wait for all: `completions = yield from gather(...)` maps tags to completions.

    A parent may be among `drops`: what is submitted keeps the pages that it needs. With `hold` the sequences that
    arrive stay held and are the caller's to drop. Without, each is dropped when the next arrives, the last when the
    chain ends: thus the prompt that all share is not computed again for those that still wait.
    """
    completions: dict[Hashable, Completion] = {}
    operations: list[Operation] = [*submits, *drops]
    last: Handle | None = None
    for _ in submits:
        tag, completion = yield from arrival(operations)
        completions[tag] = completion
        operations = [] if hold or last is None else [Drop(last)]
        last = completion.handle
    return completions


def log_p(answer: State | Completion, alpha: float) -> float:
    """log p of an answer in nats: (sum log q + sum log Z) / alpha; the sum of log_z alone where alpha is inf."""
    if np.isinf(alpha):
        return float(answer.log_z.sum())
    return float((answer.log_q.sum() + answer.log_z.sum()) / alpha)


def spliced(state: State, start: int, completion: Completion) -> State:
    """The answer that keeps the first `start` tokens of `state` and goes on with a completion's.

    At `start` both share the prefix: the stored log Z stays, as recomputing it could differ in rounding.
    """
    kept_log_z = state.log_z[: start + 1]
    return State(
        tokens=state.tokens[:start] + completion.tokens,
        log_q=np.concatenate([state.log_q[:start], completion.log_q]),
        log_z=np.concatenate([kept_log_z, completion.log_z[len(kept_log_z) - start :]]),
        ended=completion.ended,
    )


def pick(weights: Weights, u: float) -> int:
    """The index that the uniform `u` draws by weight; never one of weight 0."""
    return int(shares(weights, np.array([u]))[0])


def shares(weights: Weights, points: Weights) -> NDArray[np.intp]:
    """The indices that points in [0, 1) draw by weight: the inverse CDF."""
    cumulative = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1])
    return np.minimum(np.searchsorted(cumulative, points * cumulative[-1], side="right"), last)
