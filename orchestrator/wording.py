"""Numbers, durations and sentences as words for readers of the terminal and of reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def sentence(first: str | None, *phrases: str | None) -> str | None:
    """The phrases that there are and a full stop; without its first there is no sentence."""
    return None if first is None else "".join(phrase for phrase in (first, *phrases, ".") if phrase is not None)


def known(words: str, value: T | None, form: Callable[[T], object] | None = None) -> str | None:
    """The words with the value, in its form, for their {}; None where it is unknown."""
    return None if value is None else words.format(value if form is None else form(value))


def percent(share: float | None) -> str:
    """A share in percent, with one decimal and without the sign."""
    return "unknown" if share is None else f"{100 * share:.1f}"


def figure(value: float | None) -> str:
    """A number with three significant digits, whole from 100 on."""
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def duration(value: float | None) -> str:
    """Seconds as `90.0 s`, `5 min 3 s` or `2 h 5 min`."""
    if value is None:
        return "unknown"
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def short(digest: str | None, form: str = "{}") -> str:
    """The first eight characters of a hash in `form`; empty without a hash."""
    return form.format(digest[:8]) if digest else ""
