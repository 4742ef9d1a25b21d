"""Samplers without a choice: one draw, greedy or at a temperature, or a text that was produced elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evals.samplers.base import ask, key, sample, whole
from evals.types import Prompt, Sample, Steps


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
        move_key = key(problem_id, sample_index, 0)
        drawn = yield from ask(whole(prompt, self.alpha, move_key, self.top_k, self.top_p))
        return sample(drawn, [drawn], self.alpha)


class GivenTexts(NamedTuple):
    """The kind `replay`: its chains return given texts and ask the engine for nothing."""

    texts: Mapping[tuple[int, int], str]
    """(problem id, sample index) -> the answer's text."""
    encode: Callable[[str], Sequence[int]]
    """A text's token ids, which have to decode to it again; nothing is added to them."""

    sequences = 1
    """See `evals.types.Sampler`."""

    def chain(self, prompt: Prompt, seed: int, problem_id: int, sample_index: int) -> Steps:
        """The given answer, ended as a model's would be: by its first stop string, else by an EOS token.

        No token limit applies. Its log q and log Z are unknown and stand as 0. Raises KeyError where no text is given.
        """
        yield from ()  # a chain is a generator, also one that asks for nothing
        tokens = (*self.encode(self.texts[problem_id, sample_index]), *sorted(prompt.eos_ids)[:1])
        stopped = prompt.stopped or (lambda _: False)
        ends = (n for n, token in enumerate(tokens, 1) if token in prompt.eos_ids or stopped(tokens[:n]))
        end = next(ends, None)
        tokens = tokens[:end]
        zeros = np.zeros(len(tokens))
        ended = "length" if end is None else "eos" if tokens[-1] in prompt.eos_ids else "stop"
        return Sample(tokens, zeros, zeros, ended, {"generated": 0, "prefilled": 0})
