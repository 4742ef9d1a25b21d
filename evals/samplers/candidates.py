"""Samplers that draw several independent answers to one prompt and choose one: best_of, snis and majority.

K answers are drawn from q(v | h) = softmax(alpha * logits) and one of them is taken:

    best_of    the likeliest, argmax of log p(x) = (sum log q + sum log Z) / alpha
    snis       drawn with probability w_k / sum w, log w_k = sum log Z: p(x)^alpha / q(x), so that the law tends to
               p^alpha as K grows (self-normalised importance sampling)
    majority   the first with the answer that most candidates come to (self-consistency)

Candidate k is keyed by move k, so that candidate 0 is the run at temperature 1 / alpha token for token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from evals.rng import Purpose, uniform
from evals.samplers.base import Weights, gather, key, log_p, pick, sample, shares, whole
from evals.types import Completion, Prompt, Steps, Submit


class Choice(NamedTuple):
    """The candidate taken, with the diagnostics of the rule that took it."""

    index: int
    info: dict[str, Any]
    weighted: tuple[tuple[tuple[int, ...], float], ...] = ()


class Candidates(NamedTuple):
    """`num_candidates` draws at alpha = 1 / temperature and one of the module's rules."""

    rule: Literal["best_of", "snis", "majority"]
    alpha: float
    num_candidates: int

    sequences = 2
    """Held at once: the sequence that grows and the one that ended last."""

    def chain(self, prompt: Prompt, seed: int, problem_id: int, sample_index: int) -> Steps:
        """One answer to `prompt`; see `evals.types.Sampler`."""
        moves = range(self.num_candidates)
        submits = [Submit(move, whole(prompt, self.alpha, key(problem_id, sample_index, move))) for move in moves]
        completions = yield from gather(submits, hold=False)
        drawn = [completions[move] for move in moves]
        match self.rule:
            case "best_of":
                choice = Choice(likeliest(drawn, self.alpha), {})
            case "snis":
                choice = by_weight(drawn, uniform(seed, key(problem_id, sample_index, 0), 0, Purpose.PICK))
            case "majority":
                choice = by_vote(drawn, prompt, self.alpha)
        answer = sample(drawn[choice.index], drawn, self.alpha, candidates=len(drawn), **choice.info)
        return answer._replace(weighted=choice.weighted)


def likeliest(drawn: Sequence[Completion], alpha: float) -> int:
    """The candidate of the largest log p; the first of equals."""
    return int(np.argmax([log_p(one, alpha) for one in drawn]))


def by_weight(drawn: Sequence[Completion], u: float) -> Choice:
    """A candidate drawn by its weight with the uniform `u`; reports the effective sample size and all the weights."""
    weights = normalised([float(np.sum(one.log_z)) for one in drawn])
    weighted = tuple((one.tokens, weight) for one, weight in zip(drawn, weights.tolist(), strict=True))
    return Choice(pick(weights, u), {"ess": effective_size(weights)}, weighted)


def by_vote(drawn: Sequence[Completion], prompt: Prompt, alpha: float) -> Choice:
    """The first candidate with the answer that most come to; a candidate without an answer does not vote.

    Of answers with as many votes that of the larger total probability wins, log sum p(x) over its candidates, and of
    equals again the one that came first. Without a single vote it is candidate 0. Raises ValueError if the prompt has
    no `vote`.
    """
    if prompt.vote is None:
        raise ValueError("a majority needs a prompt that says what answers come to (Prompt.vote)")
    ballots = [prompt.vote(one.tokens) for one in drawn]
    votes = Counter(ballot for ballot in ballots if ballot is not None)
    mass = dict.fromkeys(votes, -np.inf)
    for one, ballot in zip(drawn, ballots, strict=True):
        if ballot is not None:
            mass[ballot] = np.logaddexp(mass[ballot], log_p(one, alpha))
    winner = max(votes, key=lambda ballot: (votes[ballot], mass[ballot]), default=None)
    return Choice(0 if winner is None else ballots.index(winner), {"votes": dict(votes)})


def normalised(log_w: Sequence[float]) -> Weights:
    """[K] weights that sum to 1. The largest is subtracted before exponentiating, so that none overflows.

    At least one weight must be positive; where every token was drawn with positive probability all are.
    """
    logs = np.asarray(log_w, dtype=np.float64)
    assert np.isfinite(logs.max()), "a candidate was drawn, so log Z is finite at each of its positions"
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def log_mean(log_w: Sequence[float]) -> float:
    """Log of the mean weight, in nats, from log weights."""
    return float(np.logaddexp.reduce(np.asarray(log_w, dtype=np.float64))) - float(np.log(len(log_w)))


def effective_size(weights: Weights) -> float:
    """Effective sample size (sum w)^2 / sum w^2: from 1, one candidate has all the weight, to K, all have the same."""
    return float(weights.sum() ** 2 / np.sum(weights**2))


def systematic(weights: Weights, u: float) -> list[int]:
    """Systematic resampling: ancestors [K], in order; index k is there K w_k times, rounded up or down, without bias.

    One uniform `u` in [0, 1) places K equally spaced points. Source: Carpenter, Clifford, Fearnhead, Improved Particle
    Filter for Nonlinear Problems (1999).
    """
    count = len(weights)
    return shares(weights, (np.arange(count) + u) / count).tolist()
