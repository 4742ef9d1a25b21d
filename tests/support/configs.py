"""The configuration that options of `powersample run`, variables and a file ask for together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.commands.table import make_parser
from orchestrator.settings.config import RunConfig
from orchestrator.settings.merge import build_config


def configured(*options: str, environ: Mapping[str, str] | None = None, file: Path | None = None) -> RunConfig:
    """What `powersample run` reads from `options`, from POWERSAMPLE_ + the names in `environ`, and from `file`."""
    variables = {f"POWERSAMPLE_{name}": value for name, value in (environ or {}).items()}
    return build_config(make_parser("run").read(options), variables, file)
