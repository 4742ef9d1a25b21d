"""Formatting of numbers, durations and sentences for readers of the terminal and of reports."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any


class Phrases(Formatter):
    """Formats sentences and leaves out phrases, which `|` parts; fields are as in `str.format` and may use FORMATS.

    A phrase is left out if a figure that it names is None, or not beyond the limit that ends its format, as in
    `{share:percent>0.02}` and `{count:,<300}`; without its first phrase a sentence is empty.
    """

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        try:
            return super().get_field(field_name, args, kwargs)
        except TypeError:  # a field of a figure that is None
            return None, field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        form, above, least = format_spec.partition(">")
        form, below, most = form.partition("<")
        if value is None or (above and value <= float(least)) or (below and value >= float(most)):
            raise LookupError
        return FORMATS[form](value) if form in FORMATS else format(value, form)

    def fill_in(self, sentence: str, figures: Mapping[str, Any]) -> str:
        filled: list[str] = []
        for phrase in sentence.split("|"):
            try:
                filled.append(self.vformat(phrase, (), figures))
            except LookupError:
                if not filled:
                    return ""
        return "".join(filled)


def with_error(score: Mapping[str, Any]) -> str:
    """A score in %: its mean ± standard error, or with the 95 % interval where the error would be shown as 0."""
    if without_spread(score) and score["ci95"]:
        low, high = score["ci95"]
        return f"{percent(score['mean'])} ({percent(low)} to {percent(high)})"
    return f"{percent(score['mean'])} ± {percent(score['stderr'])}"


def without_spread(score: Mapping[str, Any]) -> bool:
    """Whether the standard error would be shown as 0, as if the score were certain."""
    return percent(score["stderr"]) == percent(0)


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


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def short(digest: str | None, form: str = "{}") -> str:
    """The first eight characters of a hash in `form`; empty without a hash."""
    return form.format(digest[:8]) if digest else ""


FORMATS = {"percent": percent, "figure": figure, "duration": duration, "gib": gib}
fill_in = Phrases().fill_in
