"""The figure of a comparison: well-formed, escaped, and every mark where its value is."""

from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from orchestrator.analysis.load import Run
from orchestrator.analysis.summary import summarise
from orchestrator.report.figures import OUTCOMES, accuracy_figure, length_figure, log_p_figure
from orchestrator.report.svg import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Panel, Point, Series, axis, figure
from support.made_up import PLAIN, POWER, as_run, known, make_record

SVG = "{http://www.w3.org/2000/svg}"


def labelled(*samplers: tuple[dict[str, Any], str]) -> list[Run]:
    runs = [as_run(f"run{i}", sampler, verdicts) for i, (sampler, verdicts) in enumerate(samplers)]
    return [run._replace(label=run.manifest.method) for run in runs]


def words(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("values", [[0, 40], [47.5, 83.2], [0.0], [250.0], [-3, 7], [100, 100], [1e-3, 2e-3]])
def test_linear_ticks_are_round_and_inside(values: list[float]) -> None:
    found = axis(values, 0, 100)
    assert found.low < min(values) <= max(values) < found.high
    assert 2 <= len(found.ticks) <= 8
    steps = [b - a for a, b in pairwise(found.ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert all(0 <= found.at(tick) <= 100 for tick in found.ticks)


def test_logarithmic_axis() -> None:
    found = axis([10, 1000], 0, 100, logarithmic=True)
    assert found.ticks == [10, 20, 50, 100, 200, 500, 1000]
    assert found.at(100) == 50
    assert found.at(1000) - found.at(100) == pytest.approx(found.at(100) - found.at(10))


def test_points_are_where_their_values_are() -> None:
    panel = Panel("t", "x", "y", [Series("s", [Point(0, 0, 0, 0), Point(10, 50, 40, 60), Point(20, 100, 100, 100)])])
    nodes = ElementTree.fromstring(figure([panel])).iter(f"{SVG}circle")
    places = [(float(node.get("cx", 0)), float(node.get("cy", 0))) for node in nodes][:3]
    assert places[1] == ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)
    assert LEFT < places[0][0] < places[1][0] < places[2][0] < RIGHT
    assert BOTTOM > places[0][1] > places[1][1] > places[2][1] > TOP


def test_every_run_has_a_point_and_a_name() -> None:
    svg = accuracy_figure(labelled((PLAIN, "1100"), ({"kind": "greedy"}, "1110"), (POWER, "0000")))
    assert svg is not None
    assert [w for w in words(svg) if w[:1] in "123" and "  " in w] == [
        "1  temperature 1",
        "2  greedy",
        "3  power (alpha 4, 10 moves)",
    ]
    assert "tokens generated per problem" in words(svg)
    assert "Score and alpha" not in words(svg), "nothing varies"


def test_a_varied_setting_has_a_panel_with_its_values_as_ticks() -> None:
    alphas = [({**POWER, "alpha": float(alpha)}, "1" * n + "0" * (9 - n)) for alpha, n in ((4, 5), (1, 3), (8, 7))]
    moves = [({**POWER, "num_moves": n}, "110000000") for n in (0, 40)]
    svg = accuracy_figure(labelled((PLAIN, "100000000"), *alphas, *moves))
    assert svg is not None
    found = words(svg)
    assert found[found.index("Score and alpha") :][1:4] == ["1", "4", "8"]
    assert found[found.index("Score and moves") :][1:4] == ["0", "10", "40"]
    assert "power, moves 10" in found, "told from the two with other moves"


def test_text_is_escaped_and_long_legends_fit() -> None:
    point = Point(1, 2, 1, 3, "<b>")
    svg = figure([Panel("a < b & c", '"x"', "y", [Series(f"<s{i}>", [point]) for i in range(30)])] * 2)
    root = ElementTree.fromstring(svg)
    assert "a < b & c" in words(svg)
    assert {"<s0>", "<s29>", "<b>", '"x"'} <= set(words(svg))
    height = int(root.get("height", 0))
    lowest = max(float(node.get("y", 0)) for node in root.iter(f"{SVG}text"))
    assert lowest < height / 2
    assert all(float(node.get("x", 0)) < WIDTH for node in root.iter(f"{SVG}text"))


def test_one_problem_has_no_interval() -> None:
    records = [make_record(0, sample_index=k) for k in range(2)]
    run = known(num_problems=1, num_samples=2)
    assert accuracy_figure([Run(run, summarise(records, [], run), records)] * 2) is not None


def test_nothing_to_show() -> None:
    assert accuracy_figure(labelled((PLAIN, ""), (POWER, ""))) is None


def test_the_histogram_has_every_answer_once() -> None:
    lengths = {"wrong": [40, 40, 41, 90], "right": [40, 300, 41], "truncated": [512] * 5}
    svg = ElementTree.fromstring(length_figure(lengths) or "")
    bars = [rect for rect in svg.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    said = [(bar.attrib["fill"], (bar.findtext(f"{SVG}title") or "").partition(" of ")) for bar in bars]
    for fate, values in lengths.items():
        assert sum(int(words[0]) for fill, words in said if fill == OUTCOMES[fate]) == len(values)
    first, second = (bar for bar in bars if bar.attrib["x"] == bars[0].attrib["x"])
    assert float(second.attrib["y"]) + float(second.attrib["height"]) == pytest.approx(float(first.attrib["y"]))
    assert float(first.attrib["y"]) + float(first.attrib["height"]) == BOTTOM, "the first stands on the axis"
    assert "truncated (5)" in words(length_figure(lengths) or "")
    assert words(length_figure({"right": [7]}) or "")[-1] == "right (1)"
    assert length_figure({}) is None


def test_log_p_by_move() -> None:
    svg = ElementTree.fromstring(log_p_figure({"log_p_by_move": [[0, -9.0], [1, -8.0], [2, -7.5]]}) or "")
    heights = [float(mark.attrib["cy"]) for mark in svg.iter(f"{SVG}circle")][:3]
    assert heights == sorted(heights, reverse=True), "it rises"
    assert log_p_figure({"log_p_by_move": []}) is None
