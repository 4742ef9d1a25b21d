"""Settings that change nothing in the run that comes of them: told at the start, so that none is passed over in
silence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from evals.samplers.registry import settings_of
from evals.tasks.presets import PRESETS
from orchestrator.settings.config import DEMO, RunConfig


class Rule(NamedTuple):
    """Settings, when they change nothing in a resolved configuration, and why."""

    names: tuple[str, ...]
    applies: Callable[[RunConfig], bool]
    reason: str


def draw(config: RunConfig) -> str:
    """Where the solved examples of a configuration come from; empty without them."""
    return PRESETS[config.task.preset].draw if config.task.num_shots else ""


def sampler(config: RunConfig, name: str) -> object:
    """A setting of the sampler; None if its kind does not read it."""
    return settings_of(config.sampler).get(name)


def starts_ray(config: RunConfig) -> bool:
    """Whether the run starts a Ray of its own, instead of doing without or joining one."""
    return not config.inline and os.environ.get("RAY_ADDRESS", "") in ("", "local")


RULES = (
    Rule(("num_workers",), lambda c: c.num_workers != c.num_actors, "there is one per GPU, or one inline"),
    Rule(("batch_size",), lambda c: not c.use_batched and c.batch_size != 1, "use_batched is off"),
    Rule(("dashboard",), lambda c: c.dashboard and not starts_ray(c), "no Ray is started"),
    Rule(("dashboard_host",), lambda c: not (c.dashboard and starts_ray(c)), "no dashboard is started"),
    Rule(("name",), lambda c: c.mode == DEMO, "the demo's runs have names of their own"),
    Rule(("seed",), lambda c: c.sampler.kind in ("greedy", "replay") and draw(c) != "keyed", "nothing is drawn"),
    Rule(("task.train_data",), lambda c: draw(c) in ("", "package"), "no solved example comes from it"),
    Rule(("task.answer_key",), lambda c: c.task.name == "open", "nothing is graded"),
    Rule(("sampler.num_moves",), lambda c: sampler(c, "num_effective_moves") is not None, "num_effective_moves counts"),
    Rule(("sampler.entropy_power",), lambda c: sampler(c, "cuts") == "uniform", "cuts is uniform"),
    Rule(
        ("sampler.replay", "sampler.early_rejection", "sampler.cuts", "engine.prefetch"),
        lambda c: 0 in (sampler(c, "num_effective_moves"), sampler(c, "num_moves")),
        "there are no moves",
    ),
    Rule(("sampler.top_k", "sampler.top_p"), lambda c: c.sampler.kind == "greedy", "the temperature is 0"),
    Rule(("engine.prefetch",), lambda c: sampler(c, "num_moves") is None, "the sampler makes no moves"),
    Rule(("engine.prefetch",), lambda c: c.engine.prefetch > 0 and c.slots == 1, "no slot stands idle"),
    Rule(("engine.float32_logits",), lambda c: c.engine.dtype == "float32", "all is in float32"),
    Rule(("engine.target_utilisation",), lambda c: not c.use_gpus, "no GPU is used"),
    Rule(
        ("engine.execution",),
        lambda c: not c.use_gpus and c.engine.execution not in ("auto", "eager"),
        "no GPU is used",
    ),
)
"""What the values decide; what depends on model, data or memory (`task.max_prompt_tokens`, `engine.allow_pickle`) is
never told."""


def unused(named: Mapping[str, str], configs: Iterable[RunConfig]) -> str:
    """A line about the settings that change nothing in any of the resolved configurations; empty without such ones.

    `named`: setting -> how the user wrote it.
    """
    reasons = [{name: one.reason for one in RULES if one.applies(config) for name in one.names} for config in configs]
    common = {name: why for name, why in reasons[0].items() if name in named and all(name in one for one in reasons)}
    idle = [f"{named[name]} ({why})" for name, why in common.items()]
    return f"Without effect here: {', '.join(idle)}." if idle else ""
