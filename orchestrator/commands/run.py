"""`powersample run`, and how commands that start a session resolve their configuration for this machine."""

from __future__ import annotations

import os
from argparse import Namespace

from evals.types import UserError
from orchestrator.console import say
from orchestrator.driver import session
from orchestrator.installation import CONFIGS
from orchestrator.machine import gpus
from orchestrator.settings.config import DEMO, RunConfig, resolve
from orchestrator.settings.merge import build_config

GPU_DEFAULT = CONFIGS / "gsm8k_power.yaml"
"""The configuration file for a machine with GPUs, unless --config names another."""


def run(args: Namespace) -> int:
    """Run what the options ask for; returns the exit code. Raises UserError for what the user can mend."""
    return session.run(resolved(requested(args)))


def requested(args: Namespace) -> RunConfig:
    """The configuration that options, environment and file ask for. Raises UserError."""
    config = build_config(args, os.environ)
    for_demo = DEMO in (config.mode, config.model)
    if config.num_gpus != 0 and not for_demo and gpus.visible_gpus():  # a file that --config names takes its place
        config = build_config(args, os.environ, GPU_DEFAULT)
    if config.task.name == "open":
        raise UserError("task.name open has no answers to grade by; use powersample generate, or another format.")
    return config


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with everything decided that depends on this machine. Raises UserError."""
    present = gpus.visible_gpus()
    remote = os.environ.get("RAY_ADDRESS") and config.num_gpus  # a cluster has GPUs of its own; Ray counts them
    bfloat16 = all(gpu.capability >= gpus.BFLOAT16 for gpu in present)
    automatic = config.engine.dtype == "auto"
    config = resolve(config, int(remote) if remote else len(present), bfloat16 or bool(remote))
    if automatic and config.engine.dtype == "float16":
        say("These GPUs have no bfloat16: the model runs in float16 (engine.dtype).")
    if config.use_gpus and not remote:
        gpus.check_torch_sees_gpus(present)
    return config
