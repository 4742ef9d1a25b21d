"""Figures as files: text as text, a title for who does not see them, the same bytes whoever draws."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import matplotlib
from PIL import Image

from orchestrator.report.figures import length_figure, log_p_figure
from orchestrator.report.plotting import png, svg
from orchestrator.report.timeline import timeline
from support.made_up import on_gpu
from support.pictures import words_in
from support.places import ROOT

LENGTHS = {"right": [40, 41, 300], "wrong": [90] * 7}
DRAW = f"""
from orchestrator.report.figures import length_figure
from orchestrator.report.plotting import png, svg
import hashlib
figure = length_figure({LENGTHS})
print(hashlib.sha256(svg(figure, "Lengths").encode() + png(figure, "by whom")).hexdigest())
"""


def test_text_is_text_and_who_does_not_see_it_is_told_the_title() -> None:
    figure = length_figure(LENGTHS)
    assert figure is not None
    drawn = svg(figure, "a < b & c")
    assert drawn.startswith('<svg role="img" ')
    assert "<title>a &lt; b &amp; c</title>" in drawn
    assert {"Answer lengths", "right (3)", "wrong (7)", "100"} <= set(words_in(drawn))
    assert "dc:date" not in drawn


def test_two_processes_draw_the_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    """Another process's random hashes, clock and matplotlibrc change nothing."""
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nlines.linewidth: 7\nsvg.fonttype: path\n")
    said = {
        subprocess.run(
            [sys.executable, "-c", DRAW],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "HOME": str(tmp_path)},
            capture_output=True,
            check=True,
        ).stdout
        for folder, seed in ((ROOT, "1"), (tmp_path, "2"))
    }
    assert len(said) == 1


def test_drawing_leaves_the_settings_as_they_were() -> None:
    with matplotlib.rc_context({"font.size": 30}):
        before = dict(matplotlib.rcParams)
        svg(timeline([on_gpu("gpu0")]), "t")
        assert dict(matplotlib.rcParams) == before


def test_a_picture_for_slides_carries_its_comment() -> None:
    figure = log_p_figure([(0, -9.0), (1, -8.0)])
    assert figure is not None
    with Image.open(BytesIO(png(figure, "<by whom>"))) as picture:
        assert picture.info["Comment"] == "<by whom>"
        assert picture.size == (1800, 720)
