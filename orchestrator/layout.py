"""Figures and tables as text that reads well in a terminal of 100 columns and as Markdown. Knows no run."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, NamedTuple

WIDTH = 100
NO_BREAK = "\u00a0"


class Table(NamedTuple):
    """Cells as they are shown, whether in Markdown or on a page."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Phrases(Formatter):
    """A sentence whose phrases are parted by `|`, with fields as in `str.format` and the formats of FORMATS.

    A phrase is left out if a figure that it names is None, or not beyond the limit that ends its format, as in
    `{share:percent>0.02}` and `{count:,<300}`; and with the first one the sentence.
    """

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        try:
            return super().get_field(field_name, args, kwargs)
        except TypeError:  # a part of what is None
            return None, field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        form, above, least = format_spec.partition(">")
        form, below, most = form.partition("<")
        if value is None or (above and value <= float(least)) or (below and value >= float(most)):
            raise LookupError
        return FORMATS[form](value) if form in FORMATS else format(value, form)

    def say(self, sentence: str, figures: Mapping[str, Any]) -> str:
        said: list[str] = []
        for phrase in sentence.split("|"):
            try:
                said.append(self.vformat(phrase, (), figures))
            except LookupError:
                if not said:
                    return ""
        return "".join(said)


def paragraphs(*parts: str | Table) -> str:
    """Markdown of sentences and tables; what is empty is left out."""
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
    """`text` in lines of at most WIDTH, none of which begins with a unit; `first` and `others` open the lines."""
    glued = re.sub(r"(?<=\d) (?=(?:s|min|h|GiB)\b|%)", NO_BREAK, text)
    filled = textwrap.fill(
        glued, WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return filled.replace(NO_BREAK, " ")


def item(text: str) -> str:
    """A list item of Markdown."""
    return wrapped(text, "- ", "  ")


def with_error(score: Mapping[str, Any]) -> str:
    """A mean ± its standard error, or with its 95 % interval where the error is none."""
    if without_spread(score) and score["ci95"]:
        low, high = score["ci95"]
        return f"{percent(score['mean'])} ({percent(low)} to {percent(high)})"
    return f"{percent(score['mean'])} ± {percent(score['stderr'])}"


def without_spread(score: Mapping[str, Any]) -> bool:
    """Would the standard error be shown as 0, as if the score were certain?"""
    return percent(score["stderr"]) == percent(0)


def percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f}"


def figure(value: float | None) -> str:
    """A number with three significant digits, whole from 100 on."""
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def duration(value: float | None) -> str:
    """Seconds as a reader says them."""
    if value is None:
        return "unknown"
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def short(digest: str | None, form: str = "{}") -> str:
    """The first eight characters of a hash in `form`; nothing where there is none."""
    return form.format(digest[:8]) if digest else ""


FORMATS = {"percent": percent, "figure": figure, "duration": duration, "gib": gib}
say = Phrases().say
