"""Greedy decoding and sampling at a temperature: chains of one request."""

from __future__ import annotations

from typing import NamedTuple

from evals.samplers.base import ask, key, sample, whole
from evals.types import Prompt, Steps


class Single(NamedTuple):
    """One draw of softmax(alpha * logits) per token; alpha = 1 / temperature, inf for greedy.

    With alpha equal to power sampling's and the same seed it is move 0 of that chain, token for token.
    """

    alpha: float
    top_k: int = 0
    """Draws are among the k most probable tokens; 0: all."""
    top_p: float = 1.0
    """Draws are among the most probable tokens that together have this probability."""

    sequences = 1
    """See `evals.types.Sampler`."""

    def chain(self, prompt: Prompt, seed: int, problem_id: int, sample_index: int) -> Steps:
        """One answer to `prompt`; see `evals.types.Sampler`."""
        words = key(problem_id, sample_index, 0)
        drawn = yield from ask(whole(prompt, self.alpha, words, self.top_k, self.top_p))
        return sample(drawn, [drawn], self.alpha)
