"""Sequential Monte Carlo for p(x)^alpha: answers grow side by side and are resampled.

N particles draw their tokens from q(v | h) = softmax(alpha * logits) and are weighted towards p^alpha_t, where alpha_t
rises from 1 to alpha over the first `smc_ramp` tokens:

    alpha_t = 1 + (alpha - 1) min(t / smc_ramp, 1),    log w_t = sum_{s <= t} (log Z_s - (alpha - alpha_t) log p_s)

with sums over the tokens that a particle has: the weight of an ended one still changes while alpha_t rises. At the end
alpha_t is alpha and log w = sum log Z. After every `smc_interval` tokens, if the effective number of particles is below
`smc_threshold` N, they are resampled; from there on weights count anew: log w less what the ancestor's was. The mean
weights at these points and at the end multiply to an unbiased estimate of sum_x p(x)^alpha. The answer is a particle
drawn by weight; its law tends to p^alpha as N grows. Source: Azizi et al., Power-SMC, arXiv 2602.10273.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from evals import types
from evals.rng import Purpose, RandomKey, uniform
from evals.samplers.base import EMPTY, Alpha, NumCandidates, State, gather, log_p, pick, spliced
from evals.samplers.candidates import effective_size, log_mean, normalised, systematic
from evals.settings import CONFIG, Positive
from evals.types import Amount, ChainFigures, Completion, Drop, Handle, Prompt, Sample, SamplingContext, Steps


@plain_dataclass(frozen=True, kw_only=True)
class ParticleFigures(ChainFigures):
    """Figures of a chain of particles."""

    particles: Amount | None = None
    rounds: Amount | None = None
    resampled: Amount | None = None
    """Rounds after which the particles were resampled."""
    log_z_hat: float | None = None
    """Log of the unbiased estimate of sum_x p(x)^alpha, in nats."""
    ess_final: float | None = None
    """Effective sample size of the weights at the end; equal answers count once: resampling makes copies, whose weights
    say nothing new."""
    distinct: Amount | None = None
    """Different answers among the particles at the end."""


class Particle(NamedTuple):
    """An answer so far, with the sequence held for it and the weight at its last resampling."""

    state: State = EMPTY
    handle: Handle | None = None
    settled: float = 0.0
    """log w at the last resampling, which is taken off its weight."""

    def grows(self, horizon: int) -> bool:
        """Whether the answer is still incomplete."""
        return self.state.ended == "length" and len(self.state.tokens) < horizon

    def longer(self, by: Completion) -> Particle:
        """The particle with the tokens that were drawn for it."""
        return self._replace(state=spliced(self.state, len(self.state.tokens), by), handle=by.handle)

    def log_w(self, alpha: float, alpha_t: float) -> float:
        """log w in nats, as if there had been no resampling."""
        return float(np.sum(self.state.log_z)) - (alpha - alpha_t) * log_p(self.state, alpha)


@dataclass(frozen=True, config=CONFIG)
class Smc:
    """`num_candidates` particles, N; the other names are the module's.

    In round r particle i is keyed by try i and move r, so that particle 0 begins like the run at temperature 1 / alpha.
    """

    alpha: Alpha = 4.0
    num_candidates: NumCandidates = 16
    smc_ramp: Annotated[
        Positive, Field(description="tokens over which the exponent rises from 1 to alpha (1: constant)")
    ] = 32
    smc_interval: Annotated[Positive, Field(description="tokens between two looks at the weights")] = 16
    smc_threshold: Annotated[
        float, Field(ge=0, le=1, description="resample below this effective share of the particles")
    ] = 0.5
    kind: Literal["smc"] = Field(default="smc", description="particles")

    def chain(self, prompt: Prompt, key: RandomKey, context: SamplingContext = SamplingContext()) -> Steps:  # noqa: B008
        """One answer to `prompt`; see `evals.types.Sampler`."""
        particles, horizon = [Particle()] * self.num_candidates, prompt.max_new_tokens
        rounds = resampled = generated = prefilled = 0
        drops: list[Drop] = []
        log_z_hat = 0.0
        while any(one.grows(horizon) for one in particles):
            requests = self.requests(particles, prompt, key.of(rounds))
            drawn = yield from gather(requests, drops, hold=True)
            particles = [one.longer(drawn[i]) if i in drawn else one for i, one in enumerate(particles)]
            drops = [Drop(done.handle) for done in drawn.values() if done.handle is not None]
            generated += sum(len(one.tokens) for one in drawn.values())
            prefilled += sum(one.prefilled for one in drawn.values())
            alpha_t = self.exponent((rounds + 1) * self.smc_interval)
            log_w = [one.log_w(self.alpha, alpha_t) - one.settled for one in particles]
            weights = normalised(log_w)
            uneven = effective_size(weights) < self.smc_threshold * self.num_candidates
            if uneven and any(one.grows(horizon) for one in particles):
                resampled += 1
                log_z_hat += log_mean(log_w)
                ancestors = systematic(weights, uniform(key.of(rounds), 0, Purpose.RESAMPLE))
                particles = [particles[i]._replace(settled=particles[i].log_w(self.alpha, alpha_t)) for i in ancestors]
            rounds += 1
        log_w = [one.log_w(self.alpha, self.alpha) - one.settled for one in particles]
        weights = normalised(log_w)
        chosen = particles[pick(weights, uniform(key, 0, Purpose.PICK))].state
        weighted = tuple((one.state.tokens, weight) for one, weight in zip(particles, weights.tolist(), strict=True))
        shares = Counter[tuple[int, ...]]()
        for tokens, weight in weighted:
            shares[tokens] += weight
        figures = ParticleFigures(
            particles=self.num_candidates,
            rounds=rounds,
            resampled=resampled,
            generated=generated,
            prefilled=prefilled,
            log_p=log_p(chosen, self.alpha),
            log_z_hat=log_z_hat + log_mean(log_w),
            ess_final=effective_size(np.array(list(shares.values()))),
            distinct=len(shares),
        )
        return Sample(*chosen, figures, weighted, self.alpha)

    @property
    def sequences(self) -> int:
        """Held at once: all particles, one of them both as it was and as it grows."""
        return self.num_candidates + 1

    def requests(self, particles: Sequence[Particle], prompt: Prompt, key: RandomKey) -> list[types.Submit]:
        """Requests for the next tokens of every incomplete particle, tagged by its number; `key` is the round's."""
        return [
            types.Submit(
                i,
                types.Request(
                    prefix=prompt.token_ids + one.state.tokens,
                    max_new=min(self.smc_interval, prompt.max_new_tokens - len(one.state.tokens)),
                    alpha=self.alpha,
                    key=key.of(key.move, attempt=i),
                    origin=len(prompt.token_ids),
                    parent=one.handle,
                ),
            )
            for i, one in enumerate(particles)
            if one.grows(prompt.max_new_tokens)
        ]

    def exponent(self, t: int) -> float:
        """alpha_t after t >= 1 tokens."""
        return 1 + (self.alpha - 1) * min(t / self.smc_ramp, 1.0)
