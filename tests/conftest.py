"""Fixtures and report sections for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from support.shared_data import unchecked

UMASK = os.umask(0o022)
os.umask(UMASK)


@pytest.fixture(autouse=True)
def umask_kept() -> Iterator[None]:
    """The command line makes files private for the rest of its process: here, for the rest of one test or fixture."""
    os.umask(UMASK)
    yield
    os.umask(UMASK)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Loading a model sets the threads of its process: here, of one test. Models as small as the tests' wait longer for
    a second thread than it saves."""
    set_one_thread()
    yield
    set_one_thread()


def set_one_thread() -> None:
    if torch := sys.modules.get("torch"):  # many files do without it, and it takes seconds to import
        torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Print last the claims of README that this run has not checked, since their data is missing."""
    yield
    if claims := unchecked(terminalreporter.getreports("skipped")):
        terminalreporter.section("CLAIMS THAT THIS RUN DID NOT CHECK", sep="!", red=True, bold=True)
        for claim, places in claims.items():
            terminalreporter.line(f"- {claim}", red=True)
            terminalreporter.line(f"  needs {places}")
