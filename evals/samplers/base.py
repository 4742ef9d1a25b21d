"""What chains need: asking the engine for one completion or several, words of the random counter, draws by weight.
Knows no law."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.types import Completion, Drop, Ended, Handle, Operation, Prompt, Request, Sample, Submit

RandomKey = tuple[int, int, int]
"""Problem, sample | try << 16, move."""
Arrival = tuple[Hashable, Completion]
Weights = NDArray[np.float64]

MAX_SAMPLES = 1 << 16
"""Sample indices share a 32-bit word with the number of the try, of which there may be as many."""


class State(NamedTuple):
    """An answer, or its beginning, with the statistics of its L tokens under the unrestricted proposal."""

    tokens: tuple[int, ...]
    log_q: NDArray[np.float64]
    log_z: NDArray[np.float64]
    ended: Ended
    """`length` also while it grows."""


EMPTY = State((), np.zeros(0), np.zeros(0), "length")


def key(problem_id: int, sample_index: int, move: int) -> RandomKey:
    """Words of the random counter. Raises ValueError where one does not fit its bits."""
    if not (0 <= problem_id < 1 << 32 and 0 <= sample_index < MAX_SAMPLES and 0 <= move < 1 << 32):
        raise ValueError(
            f"no random key for problem {problem_id}, sample {sample_index}, move {move}: a word overflows"
        )
    return problem_id, sample_index, move


def whole(prompt: Prompt, alpha: float, key: RandomKey, top_k: int = 0, top_p: float = 1.0) -> Request:
    """The request for an answer from its first token to its end."""
    origin = len(prompt.token_ids)
    return Request(prompt.token_ids, prompt.max_new_tokens, alpha, key, origin, top_k=top_k, top_p=top_p)


def sample(taken: Completion, drawn: Sequence[Completion], alpha: float, **info: Any) -> Sample:
    """The answer `taken` of those `drawn` at `alpha`, all of them whole, with `info` beside the usual diagnostics."""
    usual = {
        "generated": sum(len(one.tokens) for one in drawn),
        "prefilled": sum(one.prefilled for one in drawn),
        "log_p": log_p(taken, alpha),
    }
    return Sample(*taken[:4], chain=usual | info)


def arrival(operations: list[Operation]) -> Generator[list[Operation], Arrival | None, Arrival]:
    """Hand over operations and wait for the next completion."""
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
    """Submit all, then drop, then wait for all: `found = yield from gather(...)` maps tags to completions.

    A parent may be among `drops`: what is submitted keeps the pages that it needs. With `hold` the sequences that
    arrive stay held and are the caller's to drop. Without, each is dropped when the next arrives, the last when the
    chain ends: thus the prompt that all share is not computed again for those that still wait.
    """
    found: dict[Hashable, Completion] = {}
    operations: list[Operation] = [*submits, *drops]
    last: Handle | None = None
    for _ in submits:
        tag, completion = yield from arrival(operations)
        found[tag] = completion
        operations = [] if hold or last is None else [Drop(last)]
        last = completion.handle
    return found


def log_p(answer: State | Completion, alpha: float) -> float:
    """log p of an answer in nats: (sum log q + sum log Z) / alpha; the sum of log_z alone where alpha is inf."""
    if np.isinf(alpha):
        return float(answer.log_z.sum())
    return float((answer.log_q.sum() + answer.log_z.sum()) / alpha)


def spliced(state: State, start: int, draft: Completion) -> State:
    """The answer that keeps the first `start` tokens of `state` and goes on with a completion's.

    At `start` both share the prefix: the stored log Z stays, as recomputing it could differ in rounding.
    """
    kept = state.log_z[: start + 1]
    return State(
        tokens=state.tokens[:start] + draft.tokens,
        log_q=np.concatenate([state.log_q[:start], draft.log_q]),
        log_z=np.concatenate([kept, draft.log_z[len(kept) - start :]]),
        ended=draft.ended,
    )


def pick(weights: Weights, u: float) -> int:
    """The index whose share of [0, 1) contains the uniform `u`; never one of weight 0."""
    return int(shares(weights, np.array([u]))[0])


def shares(weights: Weights, points: Weights) -> NDArray[np.intp]:
    """Inverse CDF of normalised weights at points in [0, 1)."""
    cumulative = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1])
    return np.minimum(np.searchsorted(cumulative, points * cumulative[-1], side="right"), last)
