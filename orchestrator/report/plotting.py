"""Matplotlib for the figures of reports: one look, whatever a user's matplotlibrc says, and the same bytes every time.

It is imported inside the functions that draw: it takes as long as a report itself, whose text does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Colour-blind readers can tell these apart, too (Okabe and Ito, 2008)."""
WIDTH, HEIGHT = 9.0, 3.6  # of a figure with one plot, in inches
LOOK = {
    **{"svg.fonttype": "none", "svg.hashsalt": "powersample", "text.parse_math": False, "font.size": 9},
    **{"axes.formatter.useoffset": False, "axes.formatter.limits": (-9, 9)},
    **{"axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.edgecolor": "#444444"},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True},
    **{"grid.color": "#dddddd", "grid.linewidth": 0.6, "lines.linewidth": 1.2, "lines.markersize": 5},
    **{"legend.frameon": False, "legend.loc": "upper left", "figure.constrained_layout.h_pad": 0.1},
}


@contextmanager
def look() -> Iterator[None]:
    """Matplotlib's defaults with LOOK on top, for the time of drawing; also a decorator."""
    from matplotlib import style

    with style.context(["default", LOOK]):
        yield


@look()
def svg(figure: Figure, title: str) -> str:
    """A figure as an SVG element whose text is text; readers that do not see it are told its `title`."""
    written = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", metadata={"Title": title, **nothing})
    text = written.getvalue()
    return text[text.index("<svg ") :].replace("<svg ", '<svg role="img" ', 1)


@look()
def png(figure: Figure, comment: str) -> bytes:
    """A figure as a PNG file that carries a comment."""
    written = BytesIO()
    figure.savefig(written, format="png", dpi=200, metadata={"Software": None, "Comment": comment})
    return written.getvalue()
