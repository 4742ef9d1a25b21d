"""The public names: fetched when they are asked for, the same to type checkers, and never from others' packages."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import powersample
from evals.types import UserError
from orchestrator.installation import version
from support.command import python
from support.places import ROOT

LIBRARIES = {"torch", "transformers", "datasets", "ray", "numpy", "scipy", "pydantic", "matplotlib", "pebble"}


def test_importing_it_loads_no_library() -> None:
    done = python("-c", f"import sys, powersample; print({LIBRARIES} & sys.modules.keys())")
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_names_are_fetched_when_they_are_asked_for() -> None:
    assert powersample.UserError is UserError
    assert powersample.__version__ == version()
    assert {"UserError", "__version__"} <= {*dir(powersample)}
    with pytest.raises(AttributeError, match="module 'powersample' has no attribute 'Nothing'"):
        powersample.Nothing  # noqa: B018


def test_type_checkers_see_the_same_names_in_the_same_places() -> None:
    tree = ast.parse((ROOT / "powersample/__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname: node.module for node in seen for alias in node.names} == powersample.PLACES


def test_another_package_called_evals_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals/__init__.py").touch()
    done = python("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from powersample import UserError")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: the package evals is imported from {tmp_path}/evals instead of powersample's own {ROOT}/evals; "
        "uninstall the other (pip uninstall evals), or start from another directory and with a clean PYTHONPATH."
    )
