"""Lays out sentences, lists and tables as text for a terminal of 100 columns that is also Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

WIDTH = 100
NO_BREAK = "\u00a0"


class Table(NamedTuple):
    """A table: its head and rows of cells, as shown in Markdown and on a page."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def paragraphs(*parts: str | Table) -> str:
    """Sentences and tables as Markdown, one below the other; empty ones are left out."""
    texts = [table(*part) if isinstance(part, Table) else wrapped(part) for part in parts if part]
    return "\n\n".join(texts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first to the left, the others to the right."""
    widths = [max(3, *(len(row[i]) for row in [head, *rows])) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        for row in (head, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def wrapped(text: str, first: str = "", others: str = "") -> str:
    """`text` in lines of at most WIDTH, none of which begins with a unit; `first` and `others` are put before them."""
    glued = re.sub(r"(?<=\d) (?=(?:s|min|h|GiB)\b|%)", NO_BREAK, text)
    filled = textwrap.fill(
        glued, WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return filled.replace(NO_BREAK, " ")


def item(text: str) -> str:
    """A list item of Markdown."""
    return wrapped(text, "- ", "  ")
