"""The table and the figure of a grid of runs: a score by the values of the first setting, a column or a line for each
combination of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.analysis.summary import Estimate
from orchestrator.report.figures import draw_scores, point
from orchestrator.report.layout import Table
from orchestrator.report.plotting import HEIGHT, WIDTH, look

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Cell(NamedTuple):
    """A run of a grid: its value of every setting, as they were written, and its score."""

    values: Mapping[str, str]
    score: Estimate

    @property
    def row(self) -> str:
        """Its value of the first setting."""
        return next(iter(self.values.values()))

    @property
    def column(self) -> str:
        """Its values of the others."""
        _, *others = self.values.items()
        return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in others)


def grid_table(cells: Sequence[Cell], metric: str) -> Table:
    """Scores in %, with their errors."""
    columns = list(dict.fromkeys(cell.column for cell in cells))
    words = {(cell.row, cell.column): cell.score.words for cell in cells}
    rows = list(dict.fromkeys(cell.row for cell in cells))
    head = [next(iter(cells[0].values)), *(column or f"{metric}, % right ± SE" for column in columns)]
    return Table(head, [[row, *(words.get((row, column), "-") for column in columns)] for row in rows])


@look()
def grid_figure(cells: Sequence[Cell], metric: str) -> Figure:
    """Scores with 95 % intervals; values that are not numbers stand side by side in their order."""
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(cell.row for cell in cells))
    places = dict(zip(rows, map(float, range(len(rows))), strict=True))
    with suppress(ValueError):
        places = {row: float(row) for row in rows}
    series = {
        column: [point(cell.score, places[cell.row], "") for cell in cells if cell.column == column]
        for column in dict.fromkeys(cell.column for cell in cells)
    }
    figure = Figure((WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    draw_scores(axes, {name or metric: sorted(points) for name, points in series.items()}, round_ticks=False)
    axes.set_xticks(list(places.values()), rows)
    setting = next(iter(cells[0].values))
    axes.set(title=f"Score by {setting}", xlabel=setting, ylabel=f"% right ({metric}), 95 % interval")
    return figure
