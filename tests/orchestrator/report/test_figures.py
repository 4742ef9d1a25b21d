"""The figures of scores, lengths and chains: everything where its value is, named, and readable."""

from dataclasses import replace
from typing import Any

import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from evals.statistics import wilson
from orchestrator.analysis.load import Run
from orchestrator.report.figures import OUTCOMES, accuracy_figure, length_figure, log_p_figure
from support.made_up import PLAIN, POWER, as_run
from support.pictures import check_readable, line, names, points


def labelled(*samplers: tuple[dict[str, Any], str]) -> list[Run]:
    runs = [as_run(f"run{i}", sampler, verdicts) for i, (sampler, verdicts) in enumerate(samplers)]
    return [run._replace(label=run.manifest.method) for run in runs]


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def costing(run: Run, tokens: float) -> Run:
    """The run as if it had generated so many tokens per problem."""
    summary = replace(run.summary, tokens=replace(run.summary.tokens, mean_generated=tokens))
    return run._replace(summary=summary)


def test_every_run_has_a_point_a_bar_and_a_name() -> None:
    runs = labelled((PLAIN, "1100"), ({"kind": "greedy"}, "1110"), (POWER, "0000"))
    [axes] = drawn(accuracy_figure([costing(run, 100 * i) for i, run in enumerate(runs, 1)])).axes
    assert names(axes.get_legend()) == ["1 temperature 1", "2 greedy", "3 power (alpha 4, 10 moves)"]
    assert [note.get_text() for note in axes.texts] == ["1", "2", "3"]
    shown, bars = [[points(line) for line in axes.get_lines()[first::2]] for first in (0, 1)]
    assert shown == [[(100, 50)], [(200, 75)], [(300, 0)]]
    assert [[y / 100 for _, y in bar] for bar in bars] == [pytest.approx(wilson(n, 4)) for n in (2, 3, 0)]
    assert axes.get_ylabel() == "% right (numeric), 95 % interval"
    assert axes.get_xlabel() == "tokens generated per problem"


def test_marks_and_names_can_be_read_where_points_crowd() -> None:
    """The demo's four methods, two of which have all but one point, and what a benchmark of samplers compares."""
    verdicts = ["1" * n + "0" * (200 - n) for n in (154, 95, 152, 166)]
    power = [({**POWER, "num_moves": moves}, verdicts[3]) for moves in (10, 0, 1, 2, 5, 40)]
    runs = labelled(({"kind": "greedy"}, verdicts[0]), (PLAIN, verdicts[1]), (PLAIN, verdicts[2]), *power)
    costs = (61.9, 56.1, 62.0, 200.5, 62, 62.4, 63, 95, 3000)
    for number in (4, len(runs)):
        figure = drawn(accuracy_figure([costing(run, cost) for run, cost in zip(runs[:number], costs, strict=False)]))
        check_readable(figure)


def test_an_axis_is_logarithmic_where_values_are_far_apart() -> None:
    runs = labelled((PLAIN, "1100"), (POWER, "1110"))
    scales = []
    for cost in (790.0, 810.0):
        figure = drawn(accuracy_figure([costing(runs[0], 100), costing(runs[1], cost)]))
        figure.draw_without_rendering()
        scales.append(figure.axes[0].get_xscale())
    assert scales == ["linear", "log"]
    low, high = figure.axes[0].get_xlim()
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert [tick for tick in ticks if low <= float(tick.replace(",", "")) <= high] == ["100", "200", "500"]


def test_a_varied_setting_has_a_plot_with_its_values_as_ticks() -> None:
    alphas = [({**POWER, "alpha": float(alpha)}, "1" * n + "0" * (9 - n)) for alpha, n in ((4, 5), (1, 3), (8, 7))]
    moves = [({**POWER, "num_moves": n}, "110000000") for n in (0, 40)]
    figure = drawn(accuracy_figure(labelled((PLAIN, "100000000"), *alphas, *moves)))
    by_title = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(by_title) == ["Score and cost", "Score and alpha", "Score and moves"]
    assert list(by_title["Score and alpha"].get_xticks()) == [1, 4, 8]
    assert list(by_title["Score and moves"].get_xticks()) == [0, 10, 40]
    assert names(by_title["Score and alpha"].get_legend()) == ["power, moves 10"], "told from the two with other moves"
    curve = line(by_title["Score and alpha"], "power, moves 10")
    assert curve == [(alpha, pytest.approx(100 * n / 9)) for alpha, n in ((1, 3), (4, 5), (8, 7))]


def test_long_legends_fit_and_names_are_no_formulas() -> None:
    runs = [run._replace(label=f"$x<{i}> and a name that is too long for one line") for i in range(30)
            for run in labelled((PLAIN, "10"))]  # fmt: skip
    figure = drawn(accuracy_figure(runs))
    assert names(figure.axes[0].get_legend())[29] == "30 $x<29> and a name that is too long for one line"
    [legend] = figure.findobj(Legend)
    box = legend.get_window_extent()
    assert 0 < box.y0 < box.y1 < figure.bbox.y1
    assert 0 < box.x0 < box.x1 < figure.bbox.x1


def test_one_problem_has_no_interval() -> None:
    [axes] = drawn(accuracy_figure(labelled((PLAIN, "1"), (POWER, "0")))).axes
    assert [points(line) for line in axes.get_lines()[::2]] == [[(330, 100)], [(330, 0)]]


def test_nothing_to_show() -> None:
    assert accuracy_figure(labelled((PLAIN, ""), (POWER, ""))) is None
    assert length_figure({"right": []}) is None
    assert log_p_figure([]) is None


def test_the_histogram_has_every_answer_once() -> None:
    lengths = {"wrong": [40, 40, 41, 90], "right": [40, 300, 41], "no answer": [], "truncated": [512] * 5}
    figure = drawn(length_figure(lengths))
    [axes] = figure.axes
    assert names(axes.get_legend()) == ["wrong (4)", "right (3)", "truncated (5)"]
    floor: dict[float, float] = {}
    shown = [fate for fate in OUTCOMES if lengths[fate]]
    for fate, bars in zip(shown, axes.containers, strict=True):
        assert isinstance(bars, BarContainer)
        for bar in bars:
            width, height = bar.get_width(), bar.get_height()
            assert height == sum(bar.get_x() <= length < bar.get_x() + width for length in lengths[fate])
            assert bar.get_y() == floor.get(bar.get_x(), 0), "stacked, the first on the axis"
            floor[bar.get_x()] = bar.get_y() + height
        assert sum(bar.get_height() for bar in bars) == len(lengths[fate])
    check_readable(figure)
    assert names(drawn(length_figure({"right": [7]})).axes[0].get_legend()) == ["right (1)"]


def test_log_p_by_move() -> None:
    means = [(0, -9.0), (1, -8.0), (2, -7.5)]
    figure = drawn(log_p_figure(means))
    [curve] = figure.axes[0].get_lines()
    assert points(curve) == means
    check_readable(figure)
