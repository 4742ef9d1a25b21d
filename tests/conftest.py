"""What every test starts from."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

UMASK = os.umask(0o022)
os.umask(UMASK)


@pytest.fixture(autouse=True)
def umask_kept() -> Iterator[None]:
    """The command line makes files private for the rest of its process: here, for the rest of one test or fixture."""
    os.umask(UMASK)
    yield
    os.umask(UMASK)
