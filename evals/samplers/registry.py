"""The table of samplers: what `sampler.kind` can name, and which settings each kind reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from math import inf
from types import MappingProxyType
from typing import NamedTuple

from evals.samplers.candidates import Candidates
from evals.samplers.paper import Paper
from evals.samplers.power import Power
from evals.samplers.single import GivenTexts, Single
from evals.samplers.smc import Smc
from evals.types import Sampler

PAPER_TOP_K = 50
"""The published code sets no truncation, and its library then keeps the 50 most probable tokens."""


class Kind(NamedTuple):
    """How to make one kind of sampler from settings."""

    make: Callable[..., Sampler]
    """Its parameters are the settings of `SamplerConfig` that it reads, and those of `make_sampler` that it needs."""
    words: str = ""
    """What it is, for the help."""

    @property
    def reads(self) -> frozenset[str]:
        """Names of the settings that this kind reads."""
        return frozenset(signature(self.make).parameters) - {"prefetch", "encode"}


def paper(
    alpha: float, num_moves: int, replay: bool, early_rejection: bool, top_k: int | None, prefetch: int
) -> Sampler:
    """The sampler of the published code, with its `top_k` where none is set."""
    top_k = PAPER_TOP_K if top_k is None else top_k
    return Paper(alpha, num_moves, replay, early_rejection, top_k=top_k, prefetch=prefetch)


def at_temperature(temperature: float, top_k: int | None, top_p: float) -> Sampler:
    return Single(1 / temperature, top_k or 0, top_p)


def majority(temperature: float, num_candidates: int) -> Sampler:
    return Candidates("majority", 1 / temperature, num_candidates)


SAMPLERS: Mapping[str, Kind] = MappingProxyType(
    {
        "power": Kind(Power, "exact Metropolis-Hastings for p^alpha"),
        "paper": Kind(paper, "the published code's rules, biased"),
        "temperature": Kind(at_temperature),
        "greedy": Kind(lambda: Single(inf)),
        "best_of": Kind(partial(Candidates, "best_of"), "candidates of temperature 1/alpha, the likeliest"),
        "majority": Kind(majority, "vote"),
        "snis": Kind(partial(Candidates, "snis"), "candidates weighted by p^alpha"),
        "smc": Kind(Smc, "particles"),
        "replay": Kind(GivenTexts, "grades given texts and samples nothing"),
    }
)
