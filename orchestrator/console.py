"""A line for the person at the terminal."""

from __future__ import annotations

import sys

from tqdm import tqdm


def say(text: str) -> None:
    """A line for the person at the terminal, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)
