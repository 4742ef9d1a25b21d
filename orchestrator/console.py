"""Printing lines to the terminal without breaking the progress bar."""

from __future__ import annotations

import sys

from tqdm import tqdm


def say(text: str) -> None:
    """Print a line on stderr, above the progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)
