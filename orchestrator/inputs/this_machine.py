"""Resolves a configuration for this machine: which GPUs it has, and which types they compute in."""

from __future__ import annotations

import os

from orchestrator.console import say
from orchestrator.machine import gpus
from orchestrator.settings.config import RunConfig, resolve


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
