"""What every test starts from."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def umask_kept() -> Iterator[None]:
    """The command line makes files private for the rest of its process: here, for the rest of one test."""
    kept = os.umask(0o022)
    os.umask(kept)
    yield
    os.umask(kept)
