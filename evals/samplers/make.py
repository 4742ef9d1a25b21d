"""From settings to a sampler."""

from __future__ import annotations

from math import inf

from evals.config import SamplerConfig
from evals.samplers.power import Power
from evals.samplers.single import Single
from evals.types import Sampler


def make_sampler(config: SamplerConfig) -> Sampler:
    """The sampler that `config` describes."""
    match config.kind:
        case "power":
            return Power(config.alpha, config.num_moves, config.replay, config.early_rejection)
        case "temperature":
            return Single(1 / config.temperature)
        case "greedy":
            return Single(inf)
        case kind:
            raise ValueError(f"there is no sampler of kind {kind} yet")
