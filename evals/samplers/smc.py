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
from typing import Any, NamedTuple

import numpy as np

from evals.rng import Purpose, uniform
from evals.samplers.base import EMPTY, MAX_SAMPLES, RandomKey, State, Weights, gather, key, log_p, pick, spliced
from evals.samplers.candidates import effective_size, log_mean, normalised, systematic
from evals.types import Completion, Drop, Handle, Prompt, Request, Sample, Steps, Submit


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


class Smc(NamedTuple):
    """`num_candidates` particles, N; the other names are the module's.

    In round r particle i is keyed by try i and move r, so that particle 0 begins like the run at temperature 1 / alpha.
    """

    alpha: float
    num_candidates: int
    smc_ramp: int
    smc_interval: int
    smc_threshold: float

    def chain(self, prompt: Prompt, seed: int, problem_id: int, sample_index: int) -> Steps:
        """One answer to `prompt`; see `evals.types.Sampler`. Raises ValueError where the tries of a key are too few."""
        if not 1 <= self.num_candidates <= MAX_SAMPLES:
            raise ValueError(f"{self.num_candidates} particles: there are random keys for 1 to {MAX_SAMPLES}")
        particles, horizon = [Particle()] * self.num_candidates, prompt.max_new_tokens
        counts = Counter(rounds=0, resampled=0, generated=0, prefilled=0)
        drops: list[Drop] = []
        log_z_hat = 0.0
        while any(one.grows(horizon) for one in particles):
            round_key = key(problem_id, sample_index, counts["rounds"])
            drawn = yield from gather(self.requests(particles, prompt, round_key), drops, hold=True)
            particles = [one.longer(drawn[i]) if i in drawn else one for i, one in enumerate(particles)]
            drops = [Drop(done.handle) for done in drawn.values() if done.handle is not None]
            counts["rounds"] += 1
            counts["generated"] += sum(len(one.tokens) for one in drawn.values())
            counts["prefilled"] += sum(one.prefilled for one in drawn.values())
            alpha_t = self.exponent(counts["rounds"] * self.smc_interval)
            log_w = [one.log_w(self.alpha, alpha_t) - one.settled for one in particles]
            weights = normalised(log_w)
            uneven = effective_size(weights) < self.smc_threshold * self.num_candidates
            if uneven and any(one.grows(horizon) for one in particles):
                counts["resampled"] += 1
                log_z_hat += log_mean(log_w)
                ancestors = systematic(weights, uniform(seed, round_key, 0, Purpose.RESAMPLE))
                particles = [particles[i]._replace(settled=particles[i].log_w(self.alpha, alpha_t)) for i in ancestors]
        log_w = [one.log_w(self.alpha, self.alpha) - one.settled for one in particles]
        info = {"particles": self.num_candidates, **counts, "log_z_hat": log_z_hat + log_mean(log_w)}
        u = uniform(seed, key(problem_id, sample_index, 0), 0, Purpose.PICK)
        return self.sample(particles, normalised(log_w), u, info)

    @property
    def sequences(self) -> int:
        """Held at once: all particles, one of them both as it was and as it grows."""
        return self.num_candidates + 1

    def requests(self, particles: Sequence[Particle], prompt: Prompt, round_key: RandomKey) -> list[Submit]:
        """Requests for the next tokens of every incomplete particle, tagged by its number."""
        problem, sample, move = round_key
        return [
            Submit(
                i,
                Request(
                    prefix=prompt.token_ids + one.state.tokens,
                    max_new=min(self.smc_interval, prompt.max_new_tokens - len(one.state.tokens)),
                    alpha=self.alpha,
                    key=(problem, sample | i << 16, move),
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

    def sample(self, particles: Sequence[Particle], weights: Weights, u: float, info: dict[str, Any]) -> Sample:
        """The sample: the particle that the uniform `u` draws by weight, and all particles with their weights.

        The effective sample size counts equal answers once: resampling makes copies, whose weights say nothing new.
        """
        chosen = particles[pick(weights, u)].state
        weighted = tuple((one.state.tokens, weight) for one, weight in zip(particles, weights.tolist(), strict=True))
        shares = Counter[tuple[int, ...]]()
        for tokens, weight in weighted:
            shares[tokens] += weight
        size = effective_size(np.array(list(shares.values())))
        info |= {"ess_final": size, "distinct": len(shares), "log_p": log_p(chosen, self.alpha)}
        return Sample(*chosen, chain=info, weighted=weighted)
