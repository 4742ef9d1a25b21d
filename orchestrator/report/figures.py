"""The figures of reports: scores against tokens and settings, log p by move, answer lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any, NamedTuple

from evals.grading.grade import score_name
from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.analysis.load import Run
from orchestrator.analysis.summary import Estimate, Summary
from orchestrator.report.plotting import COLOURS, HEIGHT, WIDTH, look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTINGS = {
    **{"alpha": "alpha", "num_moves": "moves"},
    **{"num_effective_moves": "effective moves", "num_candidates": "candidates"},
}
"""Settings of samplers that can have a plot -> the name on its axis."""
MAX_TICKS = 8
MAX_BARS = 40  # of a histogram, at least 1 token wide
NAME_WIDTH = 40  # characters of a line in a legend
LOG_FROM = 8  # an axis whose largest value is so many times its smallest is logarithmic
OUTCOMES = {"wrong": COLOURS[1], "right": COLOURS[2], "no answer": COLOURS[7], "truncated": COLOURS[3]}
"""What became of an answer -> its colour, from bottom to top of a histogram; of several that apply, the last."""
PLACES = [(x, y * far) for far in (1, 2, 3) for x, y in ((7, 7), (7, -7), (-7, 7), (-7, -7))]
"""Where a mark may stand beside its point, in points, the best first."""


class Point(NamedTuple):
    """A score in %, with its 95 % interval; `mark` is the short text beside it."""

    x: float
    y: float
    low: float
    high: float
    mark: str


@look()
def accuracy_figure(runs: Sequence[Run], grader: str = PRIMARY_METRIC) -> Figure | None:
    """The score against generated tokens per problem, with a plot more for each varied setting.

    With several samples per problem the tokens are those of one sample, as is the score. Bars are 95 % intervals. Runs
    without answers are left out; None if none is left.
    """
    from matplotlib.figure import Figure

    known = [run for run in runs if run.summary.tokens.mean_generated]
    if not known:
        return None
    by_cost = {
        f"{i}  {run.label}": [point(run.summary.accuracy[grader], run.summary.tokens.mean_generated or 0.0, str(i))]
        for i, run in enumerate(known, 1)
    }
    plots = [("Score and cost", "tokens generated per problem", by_cost)]
    for setting, name in SETTINGS.items():
        if series := sweeps([run.summary for run in known], setting, grader):
            plots.append((f"Score and {name}", f"{name} (beside the points: tokens generated per problem)", series))
    heights = [max(HEIGHT, 0.8 + 0.2 * sum(len(wrap(name, NAME_WIDTH)) for name in series)) for _, _, series in plots]
    figure = Figure((WIDTH, sum(heights)), layout="constrained")
    panels = figure.subplots(len(plots), squeeze=False, height_ratios=heights)[:, 0]
    metric = score_name(grader, known[0].summary.run.task)
    for axes, (title, label, series) in zip(panels, plots, strict=True):
        draw_scores(axes, series, round_ticks=series is by_cost)
        axes.set(title=title, xlabel=label, ylabel=f"% right ({metric}), 95 % interval")
    figure.draw_without_rendering()  # from here on it is known where the points are
    figure.set_layout_engine("none")
    for axes, (_, _, series) in zip(panels, plots, strict=True):
        write_marks(axes, [point for points in series.values() for point in points])
    return figure


def sweeps(runs: Sequence[Summary], setting: str, grader: str) -> dict[str, list[Point]]:
    """Name -> points of runs (given as summaries) whose samplers differ in `setting` alone, in its order: a series for
    each combination of the other settings."""
    groups: dict[tuple[tuple[str, Any], ...], list[Summary]] = {}
    for summary in runs:
        sampler = summary.run.sampler
        if sampler.get(setting) is not None:
            others = sorted((key, str(value)) for key, value in sampler.items() if key != setting)
            groups.setdefault(tuple(others), []).append(summary)
    series = {}
    for others, group in groups.items():
        values = {summary.run.sampler[setting] for summary in group}
        if len(values) > 1:
            series[series_name(dict(others), groups)] = [
                point(summary.accuracy[grader], summary.run.sampler[setting], f"{summary.tokens.mean_generated:,.0f}")
                for summary in sorted(group, key=lambda summary: summary.run.sampler[setting])
            ]
    return series


def series_name(others: Mapping[str, str], groups: Mapping[tuple[tuple[str, Any], ...], Any]) -> str:
    """The name of a series: the sampler's kind, and those settings in which the series of this kind differ."""
    rivals = [dict(group) for group in groups if dict(group)["kind"] == others["kind"]]
    differing = [key for key in others if any(rival.get(key) != others[key] for rival in rivals)]
    kind = others["kind"] + (" (biased, for comparison only)" if others["kind"] == "paper" else "")
    return ", ".join([kind, *(f"{SETTINGS.get(key, key)} {others[key].removesuffix('.0')}" for key in differing)])


def point(score: Estimate, x: float, mark: str) -> Point:
    """A score as a point at `x`; of one problem it has no interval."""
    mean = score.mean or 0.0
    low, high = score.ci95 or (mean, mean)
    return Point(x, 100 * mean, 100 * low, 100 * high, mark)


def draw_scores(axes: Axes, series: Mapping[str, Sequence[Point]], round_ticks: bool) -> None:
    """Name -> points as lines with error bars; unless `round_ticks`, a few values are the ticks themselves."""
    from matplotlib.ticker import LogLocator, NullLocator

    values = sorted({point.x for points in series.values() for point in points})
    if values[0] > 0 and values[-1] >= LOG_FROM * values[0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:,.10g}")
    if not round_ticks and len(values) <= MAX_TICKS:
        axes.set_xticks(values)
    for i, (name, points) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(
            [one.x for one in points], [one.y for one in points], "o-", color=colour, label=fill(name, NAME_WIDTH)
        )
        for one in points:
            axes.plot([one.x, one.x], [one.low, one.high], color=colour)
    axes.margins(0.08)
    axes.legend(bbox_to_anchor=(1, 1))


def write_marks(axes: Axes, points: Sequence[Point]) -> None:
    """Write every mark beside its point, where it lies on no line and on no other mark as far as there is room."""
    lines = [line.get_path().transformed(axes.transData) for line in axes.get_lines()]
    taken = []
    for point in points:
        mark = axes.annotate(point.mark, (point.x, point.y), (0, 0), textcoords="offset points", va="center")
        for right, up in PLACES:
            mark.set(position=(right, up), ha="left" if right > 0 else "right")
            box = mark.get_window_extent().padded(2)
            if not box.count_overlaps(taken) and not any(line.intersects_bbox(box, filled=False) for line in lines):
                break
        taken.append(mark.get_window_extent())


@look()
def log_p_figure(means: Sequence[tuple[int, float]]) -> Figure | None:
    """Mean log p by move, given as pairs; None where nothing moved."""
    from matplotlib.figure import Figure

    if not means:
        return None
    figure = Figure((WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*means, strict=True), "o-", color=COLOURS[0])
    labels = {"xlabel": "move (mean over the chains that got that far)", "ylabel": "mean log p of the answer, nats"}
    axes.set(title="Log p by move", **labels)
    return figure


@look()
def length_figure(lengths: Mapping[str, Sequence[int]]) -> Figure | None:
    """A stacked histogram of fate -> tokens of the answers that had it; None without answers."""
    from matplotlib.figure import Figure

    shown = {fate: values for fate, values in lengths.items() if values}
    if not shown:
        return None
    low, high = min(map(min, shown.values())), max(map(max, shown.values()))
    width = (high - low) // MAX_BARS + 1
    figure = Figure((WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.hist(
        list(shown.values()),
        range(low, high + width + 1, width),
        stacked=True,
        color=[OUTCOMES[fate] for fate in shown],
        label=[f"{fate} ({len(values):,})" for fate, values in shown.items()],
    )
    axes.locator_params(integer=True)
    axes.set(title="Answer lengths", xlabel="tokens of the answer", ylabel="answers")
    axes.legend(bbox_to_anchor=(1, 1))
    return figure
