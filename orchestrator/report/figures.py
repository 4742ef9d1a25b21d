"""The figures of reports as SVG text: scores against tokens and settings, log p by move, answer lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.analysis.load import Run
from orchestrator.analysis.summary import ChainStatistics, Summary
from orchestrator.report import svg
from orchestrator.report.svg import Panel, Point, Series

SETTINGS = {
    **{"alpha": "alpha", "num_moves": "moves"},
    **{"num_effective_moves": "effective moves", "num_candidates": "candidates"},
}
"""Settings of samplers that can have a panel -> the name on its axis."""
MAX_TICKS = 8
MAX_BARS = 40  # of a histogram, at least 1 token wide
OUTCOMES = {"wrong": svg.COLOURS[1], "right": svg.COLOURS[2], "no answer": svg.COLOURS[7], "truncated": svg.COLOURS[3]}
"""What became of an answer -> its colour, from bottom to top of a histogram; of several that apply, the last."""
SCORE = f"% right ({PRIMARY_METRIC}) ± standard error"


def accuracy_figure(runs: Sequence[Run]) -> str | None:
    """SVG text of the primary metric against generated tokens per problem, with a panel more for each varied setting.

    With several samples per problem the tokens are those of one sample, as is the score. Bars are one standard
    error, or the 95 % interval where all answers are right or all wrong. Runs without answers are left out; None if
    none is left.
    """
    known = [run for run in runs if run.summary.tokens.mean_generated]
    if not known:
        return None
    by_cost = [
        Series(f"{i}  {run.label}", [point(run.summary, run.summary.tokens.mean_generated or 0.0, str(i))])
        for i, run in enumerate(known, 1)
    ]
    panels = [Panel("Score and cost", "tokens generated per problem", SCORE, by_cost)]
    for setting, name in SETTINGS.items():
        if series := sweeps([run.summary for run in known], setting):
            label = f"{name} (beside the points: tokens generated per problem)"
            values = sorted({point.x for one in series for point in one.points})
            ticks = tuple(values) if len(values) <= MAX_TICKS else ()
            panels.append(Panel(f"Score and {name}", label, SCORE, series, ticks))
    return svg.figure(panels)


def sweeps(runs: Sequence[Summary], setting: str) -> list[Series]:
    """Series of runs (given as summaries) whose samplers differ in `setting` alone, in its order: one for each
    combination of the other settings."""
    groups: dict[tuple[tuple[str, Any], ...], list[Summary]] = {}
    for summary in runs:
        sampler = summary.run.sampler
        if sampler.get(setting) is not None:
            others = sorted((key, str(value)) for key, value in sampler.items() if key != setting)
            groups.setdefault(tuple(others), []).append(summary)
    series = []
    for others, group in groups.items():
        values = {summary.run.sampler[setting] for summary in group}
        if len(values) > 1:
            points = [
                point(summary, summary.run.sampler[setting], f"{summary.tokens.mean_generated:,.0f}")
                for summary in sorted(group, key=lambda summary: summary.run.sampler[setting])
            ]
            series.append(Series(series_name(dict(others), groups), points, joined=True))
    return series


def series_name(others: Mapping[str, str], groups: Mapping[tuple[tuple[str, Any], ...], Any]) -> str:
    """The name of a series: the sampler's kind, and those settings in which the series of this kind differ."""
    rivals = [dict(group) for group in groups if dict(group)["kind"] == others["kind"]]
    differing = [key for key in others if any(rival.get(key) != others[key] for rival in rivals)]
    kind = others["kind"] + (" (biased, for comparison only)" if others["kind"] == "paper" else "")
    return ", ".join([kind, *(f"{SETTINGS.get(key, key)} {others[key].removesuffix('.0')}" for key in differing)])


def point(summary: Summary, x: float, mark: str = "") -> Point:
    """The primary metric in %, with one standard error, as a point at `x`."""
    score = summary.accuracy[PRIMARY_METRIC]
    mean, error = score.mean or 0.0, score.stderr
    low, high = (mean - error, mean + error) if error else score.ci95 or (mean, mean)
    return Point(x, 100 * mean, 100 * low, 100 * high, mark)


def log_p_figure(chain: ChainStatistics) -> str | None:
    """SVG text of the mean log p by move; None where nothing moved."""
    points = [Point(move, value, value, value) for move, value in chain.log_p_by_move]
    series = [Series("mean over the chains that got that far", points, joined=True)]
    return svg.figure([Panel("Log p by move", "move", "mean log p of the answer, nats", series)]) if points else None


def length_figure(lengths: Mapping[str, Sequence[int]]) -> str | None:
    """SVG text of a stacked histogram of fate -> tokens of the answers that had it; None without answers."""
    values = [length for kind in lengths.values() for length in kind]
    if not values:
        return None
    low, width = min(values), (max(values) - min(values)) // MAX_BARS + 1
    counts = {name: Counter((length - low) // width for length in kind) for name, kind in lengths.items() if kind}
    x = svg.axis([low, low + width * ((max(values) - low) // width + 1)], svg.LEFT, svg.RIGHT)
    largest = sum(counts.values(), Counter[int]()).most_common(1)[0][1]
    y = svg.axis([0, largest], svg.BOTTOM, svg.TOP)._replace(low=0)
    y = y._replace(ticks=[tick for tick in y.ticks if tick == int(tick)])
    lines = [*svg.frame(x, y, "Answer lengths", "tokens of the answer (beside the names: how many answers)")]
    below: Counter[int] = Counter()
    for i, (name, count) in enumerate(counts.items()):
        for place, number in sorted(count.items()):
            start = low + width * place
            left, top, bottom = x.at(start), y.at(below[place] + number), y.at(below[place])
            tooltip = f"{number:,} of {start:,}" + (f" to {start + width - 1:,}" if width > 1 else "") + " tokens"
            lines.append(
                f'<rect x="{left}" y="{top}" width="{max(1.0, x.at(start + width) - left - 0.5):g}" '
                f'height="{bottom - top:g}" fill="{OUTCOMES[name]}"><title>{tooltip}</title></rect>'
            )
        below.update(count)
        lines.append(svg.key(svg.RIGHT + 20, svg.TOP + 6 + 20 * i, f"{name} ({len(lengths[name]):,})", OUTCOMES[name]))
    return svg.document("Answer lengths", svg.HEIGHT, lines)
