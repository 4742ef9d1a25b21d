"""What the figure of a comparison shows: scores against tokens, and against a setting that runs differ in. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.scores import HEADLINE
from orchestrator.svg import Panel, Point, Series, figure

SETTINGS = {
    "alpha": "alpha",
    "num_moves": "moves",
    "num_effective_moves": "effective moves",
    "num_candidates": "candidates",
}
"""Settings of samplers that a panel can stand for, and what its axis says."""
MAX_TICKS = 8
SCORE = f"% right ({HEADLINE}) ± standard error"

Labelled = Sequence[tuple[str, Mapping[str, Any]]]
"""Runs as (label, summary)."""


def accuracy_figure(runs: Labelled) -> str | None:
    """SVG text of the headline score against generated tokens per problem, with one more panel for each varied setting.

    With several samples per problem the tokens are those of one, which is what the score is of. Bars are one standard
    error, or the 95 % interval where all answers are right or all wrong. Runs without answers are left out; None if
    none is left.
    """
    known = [(label, summary) for label, summary in runs if summary["tokens"]["mean_generated"]]
    if not known:
        return None
    by_cost = [
        Series(f"{i}  {label}", [point(summary, summary["tokens"]["mean_generated"], str(i))])
        for i, (label, summary) in enumerate(known, 1)
    ]
    panels = [Panel("Score and cost", "tokens generated per problem", SCORE, by_cost)]
    for setting, name in SETTINGS.items():
        if series := sweeps(known, setting):
            label = f"{name} (beside the points: tokens generated per problem)"
            values = sorted({point.x for one in series for point in one.points})
            ticks = tuple(values) if len(values) <= MAX_TICKS else ()
            panels.append(Panel(f"Score and {name}", label, SCORE, series, ticks))
    return figure(panels)


def sweeps(runs: Labelled, setting: str) -> list[Series]:
    """Runs whose samplers differ in this setting alone, in its order, one series for each set of the other settings."""
    groups: dict[tuple[tuple[str, Any], ...], list[Mapping[str, Any]]] = {}
    for _, summary in runs:
        sampler = summary["run"]["sampler"]
        if sampler.get(setting) is not None:
            others = sorted((key, str(value)) for key, value in sampler.items() if key != setting)
            groups.setdefault(tuple(others), []).append(summary)
    found = []
    for others, group in groups.items():
        values = {summary["run"]["sampler"][setting] for summary in group}
        if len(values) > 1:
            points = [
                point(summary, summary["run"]["sampler"][setting], f"{summary['tokens']['mean_generated']:,.0f}")
                for summary in sorted(group, key=lambda summary: summary["run"]["sampler"][setting])
            ]
            found.append(Series(series_name(dict(others), groups), points, joined=True))
    return found


def series_name(others: Mapping[str, str], groups: Mapping[tuple[tuple[str, Any], ...], Any]) -> str:
    """The kind, and of its settings those in which the series of this kind differ."""
    rivals = [dict(group) for group in groups if dict(group)["kind"] == others["kind"]]
    told = [key for key in others if any(rival.get(key) != others[key] for rival in rivals)]
    kind = others["kind"] + (" (biased, for comparison only)" if others["kind"] == "paper" else "")
    return ", ".join([kind, *(f"{SETTINGS.get(key, key)} {others[key].removesuffix('.0')}" for key in told)])


def point(summary: Mapping[str, Any], x: float, mark: str = "") -> Point:
    """The headline score in %, with one standard error."""
    score = summary["accuracy"][HEADLINE]
    mean, error = score["mean"], score["stderr"]
    low, high = (mean - error, mean + error) if error else score["ci95"] or (mean, mean)
    return Point(x, 100 * mean, 100 * low, 100 * high, mark)
