"""What a figure shows, for tests."""

from __future__ import annotations

from unittest.mock import patch
from xml.etree import ElementTree

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text


def words_in(svg: str) -> list[str]:
    """The texts of an SVG file, in order."""
    return [node.text or "" for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def names(legend: Legend | None) -> list[str]:
    """The names in a legend, without their line breaks."""
    assert legend is not None
    return [" ".join(text.get_text().split()) for text in legend.get_texts()]


def points(line: Line2D) -> list[tuple[float, float]]:
    """The points of a line."""
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def line(axes: Axes, label: str) -> list[tuple[float, float]]:
    """The points of the line of this name."""
    [found] = [line for line in axes.get_lines() if line.get_label() == label]
    return points(found)


def check_readable(figure: Figure) -> None:
    """No text lies on another, none is cut off."""
    drawn: list[Text] = []
    with patch.object(Text, "draw", lambda text, renderer: drawn.append(text)):
        figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in drawn if text.get_text() and text.get_visible()]
    assert len(boxes) > 10
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[i + 1 :]), drawn[i]
        assert min(box.x0, box.y0) >= -1, drawn[i]
        assert box.x1 <= figure.bbox.x1 + 1, drawn[i]
        assert box.y1 <= figure.bbox.y1 + 1, drawn[i]
