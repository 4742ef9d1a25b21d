"""From settings to a sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import MappingProxyType

from evals.config import SamplerConfig
from evals.samplers.candidates import Candidates
from evals.samplers.paper import Paper
from evals.samplers.power import Power
from evals.samplers.replay import Replay
from evals.samplers.single import Single
from evals.samplers.smc import Smc
from evals.types import Sampler

PAPER_TOP_K = 50
"""The published code sets no truncation, and its library then keeps the 50 most probable tokens."""


def make_sampler(
    config: SamplerConfig,
    prefetch: int = 0,
    texts: Mapping[tuple[int, int], str] = MappingProxyType({}),
    encode: Callable[[str], Sequence[int]] = lambda _: (),
) -> Sampler:
    """The sampler that `config` describes; where slots idle, `prefetch` drafts of a chain may run ahead.

    `texts` and `encode` are what `replay` replays; see there.
    """
    match config.kind:
        case "power":
            return Power(
                alpha=config.alpha,
                num_moves=config.num_moves,
                replay=config.replay,
                early_rejection=config.early_rejection,
                num_effective_moves=config.num_effective_moves,
                blocks=config.blocks,
                cuts=config.cuts,
                entropy_power=config.entropy_power,
                prefetch=prefetch,
            )
        case "paper":
            return Paper(
                alpha=config.alpha,
                num_moves=config.num_moves,
                replay=config.replay,
                early_rejection=config.early_rejection,
                top_k=PAPER_TOP_K if config.top_k is None else config.top_k,
                prefetch=prefetch,
            )
        case "temperature":
            return Single(1 / config.temperature, config.top_k or 0, config.top_p)
        case "greedy":
            return Single(inf)
        case "best_of" | "snis":
            return Candidates(config.kind, config.alpha, config.num_candidates)
        case "majority":
            return Candidates(config.kind, 1 / config.temperature, config.num_candidates)
        case "smc":
            return Smc(
                alpha=config.alpha,
                num_particles=config.num_candidates,
                ramp=config.smc_ramp,
                interval=config.smc_interval,
                threshold=config.smc_threshold,
            )
        case "replay":
            return Replay(texts, encode)
