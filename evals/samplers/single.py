"""Samplers without a choice: one draw, greedy or at a temperature, or a text that was produced elsewhere."""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from evals.rng import RandomKey
from evals.samplers.base import Temperature, TopK, ask, sample, whole
from evals.settings import CONFIG, Text
from evals.types import ChainFigures, Prompt, Sample, SamplingContext, Steps


@dataclass(frozen=True, config=CONFIG)
class AtTemperature:
    """One draw of softmax(logits / temperature) per token.

    At temperature 1 / alpha and with the same seed it is move 0 of power sampling, token for token.
    """

    temperature: Temperature = 1.0
    top_k: TopK = None
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="draw among the most probable tokens that together have this probability; 1: all"
    )
    kind: Literal["temperature"] = Field(default="temperature", description="")

    sequences = 1

    def chain(self, prompt: Prompt, key: RandomKey, context: SamplingContext = SamplingContext()) -> Steps:  # noqa: B008
        """One answer to `prompt`; see `evals.types.Sampler`."""
        return one_draw(prompt, key, 1 / self.temperature, self.top_k or 0, self.top_p)


@dataclass(frozen=True, config=CONFIG)
class Greedy:
    """The likeliest token each time."""

    kind: Literal["greedy"] = Field(default="greedy", description="")

    sequences = 1

    def chain(self, prompt: Prompt, key: RandomKey, context: SamplingContext = SamplingContext()) -> Steps:  # noqa: B008
        """One answer to `prompt`; see `evals.types.Sampler`."""
        return one_draw(prompt, key, inf)


def one_draw(prompt: Prompt, key: RandomKey, alpha: float, top_k: int = 0, top_p: float = 1.0) -> Steps:
    """The chain of one answer, drawn at `alpha` among the `top_k` likeliest tokens that together have `top_p`."""
    drawn = yield from ask(whole(prompt, alpha, key, top_k, top_p))
    return sample(drawn, [drawn], alpha)


@dataclass(frozen=True, config=CONFIG)
class Replay:
    """Returns the given answers of `texts` and asks the engine for nothing."""

    texts: Text = Field(
        description='what replay grades: a file of rows {"id": row of the data from 0, "text": answer}, one for '
        "each sample (without id: in the order of the data), or gold (the data's own answers)",
    )
    kind: Literal["replay"] = Field(default="replay", description="grades given texts and samples nothing")

    sequences = 1

    def chain(self, prompt: Prompt, key: RandomKey, context: SamplingContext = SamplingContext()) -> Steps:  # noqa: B008
        """The given answer. Its log q and log Z are unknown and stand as 0. Raises ValueError where none is given."""
        yield from ()  # a chain is a generator, also one that asks for nothing
        if context.given is None:
            raise ValueError("there is no given answer to replay")
        tokens, ended = context.given
        zeros = np.zeros(len(tokens))
        return Sample(tokens, zeros, zeros, ended, ChainFigures(generated=0, prefilled=0))
