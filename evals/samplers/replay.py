"""Answers that were produced elsewhere, put through the whole pipeline: nothing is sampled, all else happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evals.types import Ended, Operation, Prompt, Sample, Steps

NOTHING: tuple[list[Operation], ...] = ()


class Replay(NamedTuple):
    """A sampler whose chains return given token ids without asking the engine for anything."""

    answers: Mapping[tuple[int, int], Sequence[int]]
    """(problem id, sample index) -> the answer's tokens, at least one, its EOS included where it has one."""

    sequences = 1
    """See `evals.types.Sampler`."""

    def chain(self, prompt: Prompt, seed: int, problem_id: int, sample_index: int) -> Steps:
        """The answer of this key; KeyError where there is none. Its log q and log Z are not known and count as 0."""
        tokens = tuple(self.answers[problem_id, sample_index])
        if not tokens:
            raise ValueError(f"problem {problem_id}, sample {sample_index}: an answer has at least one token")
        yield from NOTHING  # a chain is a generator, also one that asks for nothing
        zeros = np.zeros(len(tokens))
        return Sample(tokens, zeros, zeros, ended(prompt, tokens), {"generated": 0, "prefilled": 0})


def ended(prompt: Prompt, tokens: Sequence[int]) -> Ended:
    """How an answer of these tokens is over."""
    if tokens[-1] in prompt.eos_ids:
        return "eos"
    return "stop" if prompt.stopped is not None and prompt.stopped(tokens) else "length"
