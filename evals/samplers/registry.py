"""The table of samplers: what `sampler.kind` can name, with the settings of each kind, and the tables of figures."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, TypeAdapter

from evals.samplers.candidates import BestOf, CandidateFigures, Majority, Snis
from evals.samplers.paper import Paper
from evals.samplers.power import Power
from evals.samplers.single import AtTemperature, Greedy, Replay
from evals.samplers.smc import ParticleFigures, Smc
from evals.samplers.trace import MoveFigures
from evals.types import ChainFigures

AnySampler = Power | Paper | AtTemperature | Greedy | BestOf | Majority | Snis | Smc | Replay

SAMPLERS: Mapping[str, type[AnySampler]] = MappingProxyType(
    {one.__pydantic_fields__["kind"].default: one for one in get_args(AnySampler)}
)
"""Kind -> its sampler, whose fields are the kind's settings."""

FIGURES: Mapping[str, type[ChainFigures]] = MappingProxyType(
    {"moves": MoveFigures, "candidates": CandidateFigures, "particles": ParticleFigures}
)
"""The figure that only one table has -> that table; a chain with none of these has those of `ChainFigures` alone."""


def with_kind(given: Any) -> Any:
    """The settings with the usual kind where they name none."""
    return {"kind": "power", **given} if isinstance(given, Mapping) else given


SamplerSettings = Annotated[AnySampler, Field(discriminator="kind"), BeforeValidator(with_kind)]
"""The settings of any kind, told apart by `kind`."""


def sampler_of(settings: Mapping[str, Any]) -> AnySampler:
    """The sampler with these settings. Raises ValidationError."""
    return TypeAdapter(SamplerSettings).validate_python(settings)


def settings_of(sampler: AnySampler) -> dict[str, Any]:
    """The kind and its settings as JSON values, which tell one sampler from another.

    `top_p` and `keep_states` are left out where they do nothing, so that fingerprints from before they were settings
    stay valid.
    """
    settings = TypeAdapter(type(sampler)).dump_python(sampler, mode="json")
    idle = ("top_p", 1), ("keep_states", False)
    return {name: value for name, value in settings.items() if (name, value) not in idle}
