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
from dataclasses import dataclass as plain_dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from evals.rng import Purpose, RandomKey, uniform
from evals.samplers import base
from evals.samplers.base import Alpha, NumCandidates, Part, Temperature, Weights, log_p, sample
from evals.settings import CONFIG
from evals.types import Amount, ChainFigures, Completion, Prompt, SamplingContext, Steps, Submit


@plain_dataclass(frozen=True, kw_only=True)
class CandidateFigures(ChainFigures):
    """Figures of a choice among candidates."""

    candidates: Amount | None = None
    ess: float | None = None
    """Effective sample size of the weights (snis)."""
    votes: dict[str, Amount] | None = None
    """Answer -> candidates that come to it (majority)."""


@dataclass(frozen=True, config=CONFIG)
class BestOf:
    """The likeliest of `num_candidates` draws at alpha."""

    alpha: Alpha = 4.0
    num_candidates: NumCandidates = 16
    kind: Literal["best_of"] = Field(default="best_of", description="candidates of temperature 1/alpha, the likeliest")

    sequences = 2  # the one that grows and the one that ended last

    def chain(self, prompt: Prompt, key: RandomKey, context: SamplingContext = SamplingContext()) -> Steps:  # noqa: B008
        """One answer to `prompt`; see `evals.types.Sampler`."""
        drawn = yield from candidates(prompt, key, self.alpha, self.num_candidates)
        chosen = drawn[likeliest(drawn, self.alpha)]
        return sample(chosen, drawn, self.alpha, CandidateFigures, candidates=len(drawn))


@dataclass(frozen=True, config=CONFIG)
class Majority:
    """The first of `num_candidates` draws at a temperature with the answer that most come to."""

    temperature: Temperature = 1.0
    num_candidates: NumCandidates = 16
    kind: Literal["majority"] = Field(default="majority", description="vote")

    sequences = 2

    def chain(self, prompt: Prompt, key: RandomKey, context: SamplingContext = SamplingContext()) -> Steps:  # noqa: B008
        """One answer to `prompt`; see `evals.types.Sampler`. Raises ValueError if the context has no `vote`."""
        if context.vote is None:
            raise ValueError("a majority needs to know what answers come to (SamplingContext.vote)")
        alpha = 1 / self.temperature
        drawn = yield from candidates(prompt, key, alpha, self.num_candidates)
        index, votes = winner(drawn, [context.vote(one.tokens) for one in drawn], alpha)
        return sample(drawn[index], drawn, alpha, CandidateFigures, candidates=len(drawn), votes=votes)


@dataclass(frozen=True, config=CONFIG)
class Snis:
    """One of `num_candidates` draws at alpha, drawn by its weight."""

    alpha: Alpha = 4.0
    num_candidates: NumCandidates = 16
    kind: Literal["snis"] = Field(default="snis", description="candidates weighted by p^alpha")

    sequences = 2

    def chain(self, prompt: Prompt, key: RandomKey, context: SamplingContext = SamplingContext()) -> Steps:  # noqa: B008
        """One answer to `prompt`; see `evals.types.Sampler`."""
        drawn = yield from candidates(prompt, key, self.alpha, self.num_candidates)
        weights = normalised([float(np.sum(one.log_z)) for one in drawn])
        chosen = drawn[base.pick(weights, uniform(key, 0, Purpose.PICK))]
        weighted = tuple((one.tokens, weight) for one, weight in zip(drawn, weights.tolist(), strict=True))
        figures = {"candidates": len(drawn), "ess": effective_size(weights)}
        return sample(chosen, drawn, self.alpha, CandidateFigures, weighted, **figures)


def candidates(prompt: Prompt, key: RandomKey, alpha: float, count: int) -> Part[list[Completion]]:
    """Draw `count` whole answers at `alpha`: `drawn = yield from candidates(...)`, in the order of their moves."""
    submits = [Submit(move, base.whole(prompt, alpha, key.of(move))) for move in range(count)]
    completions = yield from base.gather(submits, hold=False)
    return [completions[move] for move in range(count)]


def likeliest(drawn: Sequence[Completion], alpha: float) -> int:
    """The candidate of the largest log p; the first of equals."""
    return int(np.argmax([log_p(one, alpha) for one in drawn]))


def winner(drawn: Sequence[Completion], ballots: Sequence[str | None], alpha: float) -> tuple[int, dict[str, int]]:
    """The first candidate with the answer that most come to, and the votes; one without an answer does not vote.

    Of answers with as many votes that of the larger total probability wins, log sum p(x) over its candidates, and of
    equals again the one that came first. Without a single vote it is candidate 0.
    """
    votes = Counter(ballot for ballot in ballots if ballot is not None)
    mass = dict.fromkeys(votes, -np.inf)
    for one, ballot in zip(drawn, ballots, strict=True):
        if ballot is not None:
            mass[ballot] = np.logaddexp(mass[ballot], log_p(one, alpha))
    best = max(votes, key=lambda ballot: (votes[ballot], mass[ballot]), default=None)
    return 0 if best is None else ballots.index(best), dict(votes)


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
    return base.shares(weights, (np.arange(count) + u) / count).tolist()
