"""One answer by one request, greedy or at a temperature, and one by none: a text that was produced elsewhere.
Knows no other candidate."""

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
        words = key(problem_id, sample_index, 0)
        drawn = yield from ask(whole(prompt, self.alpha, words, self.top_k, self.top_p))
        return sample(drawn, [drawn], self.alpha)


class Replay(NamedTuple):
    """A sampler whose chains return given texts without asking the engine for anything."""

    texts: Mapping[tuple[int, int], str]
    """(problem id, sample index) -> the answer's text."""
    encode: Callable[[str], Sequence[int]]
    """A text's token ids, which have to decode to it again; nothing is added to them."""

    sequences = 1
    """See `evals.types.Sampler`."""

    def chain(self, prompt: Prompt, seed: int, problem_id: int, sample_index: int) -> Steps:
        """The answer of this key, ended as a model's would be: by its first stop string, else by an EOS token.

        However long it is: no limit cut it. KeyError where there is none. Its log q and log Z are not known and count
        as 0.
        """
        yield from ()  # a chain is a generator, also one that asks for nothing
        tokens = (*self.encode(self.texts[problem_id, sample_index]), *sorted(prompt.eos_ids)[:1])
        stopped = prompt.stopped or (lambda _: False)
        over = (n for n, token in enumerate(tokens, 1) if token in prompt.eos_ids or stopped(tokens[:n]))
        end = next(over, None)
        tokens = tokens[:end]
        zeros = np.zeros(len(tokens))
        ended = "length" if end is None else "eos" if tokens[-1] in prompt.eos_ids else "stop"
        return Sample(tokens, zeros, zeros, ended, {"generated": 0, "prefilled": 0})
