"""What samplers share: answers with their statistics, random keys, waiting for completions, draws by weight."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.types import Completion, Drop, Ended, Handle, Operation, Prompt, Request, Sample, Submit

RandomKey = tuple[int, int, int]
"""Words of the random counter (rng.py): problem, sample | try << 16, number of the move."""
Arrival = tuple[Hashable, Completion]
Weights = NDArray[np.float64]

MAX_SAMPLES = 1 << 16
"""A sample index and the number of a try have 16 bits each of one word of the random key."""


class State(NamedTuple):
    """An answer, complete or not, with log q and log Z of its L tokens, both as if no token were excluded."""

    tokens: tuple[int, ...]
    log_q: NDArray[np.float64]
    log_z: NDArray[np.float64]
    ended: Ended
    """`length` also while the answer is incomplete."""


EMPTY = State((), np.zeros(0), np.zeros(0), "length")


def key(problem_id: int, sample_index: int, move: int) -> RandomKey:
    """The random key of a move. Raises ValueError where a number does not fit its bits."""
    if not (0 <= problem_id < 1 << 32 and 0 <= sample_index < MAX_SAMPLES and 0 <= move < 1 << 32):
        raise ValueError(
            f"no random key for problem {problem_id}, sample {sample_index}, move {move}: a word overflows"
        )
    return problem_id, sample_index, move


def whole(prompt: Prompt, alpha: float, key: RandomKey, top_k: int = 0, top_p: float = 1.0) -> Request:
    """The request for a whole answer, from its first token to its end."""
    origin = len(prompt.token_ids)
    return Request(prompt.token_ids, prompt.max_new_tokens, alpha, key, origin, top_k=top_k, top_p=top_p)


def sample(taken: Completion, drawn: Sequence[Completion], alpha: float, **info: Any) -> Sample:
    """The sample of the answer `taken` among the whole answers `drawn` at `alpha`; `info` adds to its diagnostics."""
    diagnostics = {
        "generated": sum(len(one.tokens) for one in drawn),
        "prefilled": sum(one.prefilled for one in drawn),
        "log_p": log_p(taken, alpha),
    }
    return Sample(*taken[:4], chain=diagnostics | info)


def arrival(operations: list[Operation]) -> Generator[list[Operation], Arrival | None, Arrival]:
    """Yield operations and wait for the next completion; returns it with its tag."""
    arrived = yield operations
    if arrived is None:
        raise RuntimeError("the engine resumed a chain that waits for a completion without one")
    return arrived


def ask(request: Request) -> Generator[list[Operation], Arrival | None, Completion]:
    """Submit one request and wait for its completion: `c = yield from ask(request)`."""
    _, completion = yield from arrival([Submit(request.key[2], request)])
    return completion


def gather(
    submits: Sequence[Submit], drops: Sequence[Drop] = (), *, hold: bool
) -> Generator[list[Operation], Arrival | None, dict[Hashable, Completion]]:
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
