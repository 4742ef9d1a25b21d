"""This installation, a checkout or a wheel: where it lies, its version, and whether the package `evals` is its own."""

from __future__ import annotations

from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The folder of the packages: the checkout, or the interpreter's site-packages."""
CONFIGS = (ROOT / "powersample/configs").resolve()  # a link in a checkout
DEMO_FOLDER = ROOT / "evals/demo"


def version() -> str:
    """The version in the checkout's pyproject.toml, or else that of the installed package."""
    import tomllib

    project = ROOT / "pyproject.toml"
    if not project.is_file():
        return installed("powersample")
    return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]


def foreign_evals() -> str | None:
    """Where `evals` is another distribution's package: the sentence that says how to mend it."""
    ours, spec = ROOT.resolve() / "evals", find_spec("evals")
    other = next(iter(spec.submodule_search_locations or ()), "nowhere") if spec else "nowhere"
    if Path(other).resolve() == ours:
        return None
    return (
        f"the package evals is imported from {other} instead of powersample's own {ours}; uninstall the other (pip "
        "uninstall evals), or start from another directory and with a clean PYTHONPATH."
    )
