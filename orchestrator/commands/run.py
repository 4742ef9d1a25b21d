"""`powersample run`, and the configuration that it is asked for."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Collection

from evals.types import UserError
from orchestrator.console import say
from orchestrator.driver import session
from orchestrator.inputs.this_machine import resolved
from orchestrator.installation import CONFIGS
from orchestrator.machine import gpus
from orchestrator.settings.config import DEMO, RunConfig
from orchestrator.settings.merge import build_config, named_settings
from orchestrator.settings.unused import unused

GPU_DEFAULT = CONFIGS / "gsm8k_power.yaml"
"""The configuration file for a machine with GPUs, unless --config names another."""


def run(args: Namespace) -> int:
    """Run what the options ask for; returns the exit code. Raises UserError for what the user can mend."""
    config = resolved(requested(args))
    tell_unused(args, [config])
    return session.run(config)


def requested(args: Namespace) -> RunConfig:
    """The configuration that options, environment and file ask for. Raises UserError."""
    config = build_config(args, os.environ)
    for_demo = DEMO in (config.mode, config.model)
    if config.num_gpus != 0 and not for_demo and gpus.visible_gpus():  # a file that --config names takes its place
        config = build_config(args, os.environ, GPU_DEFAULT)
    if config.task.name == "open":
        raise UserError("task.name open has no answers to grade by; use powersample generate, or another format.")
    return config


def tell_unused(args: Namespace, configs: Collection[RunConfig], used: Collection[str] = ()) -> None:
    """Say which settings that the user made change nothing in any of these resolved configurations; those `used` by
    the command itself are no such."""
    named = named_settings(args, os.environ).items()
    if line := unused({name: one.spelling for name, one in named if name not in used}, configs):
        say(line)
