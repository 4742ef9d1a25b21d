"""Comparisons of runs: which pairs, which tests, how it reads, and where it is written."""

import json
import re
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from evals.statistics import holm
from evals.types import UserError
from orchestrator.analysis.comparison import compare, labelled
from orchestrator.analysis.load import Run
from orchestrator.analysis.summarise import summarise
from orchestrator.cli import main
from orchestrator.report import make
from orchestrator.report.comparison_text import comparison_report, points, shared_warnings
from orchestrator.report.make import print_reports, write_report
from orchestrator.report.plotting import png
from orchestrator.report.run_text import run_report
from support.made_up import PLAIN, POWER, as_run, known, make_run, refused, rows, said, save, write


def test_comparison_is_paired_and_against_temperature_1() -> None:
    runs = [as_run("p", POWER, "1" * 12 + "0" * 8 + " "), as_run("t", PLAIN, "0" * 10 + "1" * 4 + "0" * 6 + "1")]
    comparison = compare(runs)
    assert (comparison.baseline, len(comparison.common)) == ("temperature 1", 20)
    (pair,) = comparison.pairs
    assert (pair.won, pair.lost, pair.p) == (10, 2, pytest.approx(0.038574, abs=1e-6))
    assert pair.p_holm == pair.p
    assert pair.difference.mean == pytest.approx(0.4)
    assert pair.difference.stderr == pytest.approx(sqrt((12 - 64 / 20) / (20 * 19)))


def test_comparison_without_a_plain_run_is_against_the_first() -> None:
    comparison = compare(
        [as_run("a", POWER, "1100"), as_run("b", POWER, "1010"), as_run("c", {"kind": "greedy"}, "1111")]
    )
    assert comparison.baseline == "power (alpha 4, 10 moves), a"
    a, b = "power (alpha 4, 10 moves), a", "power (alpha 4, 10 moves), b"
    assert [(pair.run, pair.against) for pair in comparison.pairs] == [(b, a), ("greedy", a), (b, "greedy")]


@pytest.mark.parametrize("cut", [{"top_k": 50}, {"top_p": 0.9}])
def test_a_truncated_run_is_no_plain_one(cut: dict[str, float]) -> None:
    runs = [as_run("p", POWER, "1100"), as_run("cut", {**PLAIN, **cut}, "1010")]
    assert compare(runs).baseline == "power (alpha 4, 10 moves)"
    whole = as_run("t", {**PLAIN, "top_k": 0, "top_p": 1.0}, "1000")
    assert compare([*runs, whole]).baseline == "temperature 1"


def test_power_is_compared_with_every_other_method_as_well() -> None:
    """Each pair once, and Holm's p values over all that are printed."""
    verdicts = {"greedy": "1" * 25 + "0" * 15, "t1": "0" * 30 + "1" * 10, "low": "1" * 20 + "0" * 20}
    samplers = {"greedy": {"kind": "greedy"}, "t1": PLAIN, "low": {"kind": "temperature", "temperature": 0.25}}
    runs = [as_run(name, samplers[name], verdicts[name]) for name in samplers]
    comparison = compare([*runs, as_run("power", POWER, "1" * 32 + "0" * 8)])
    low, power = "temperature 0.25", "power (alpha 4, 10 moves)"
    plain = [("greedy", "temperature 1"), (low, "temperature 1"), (power, "temperature 1")]
    assert [(pair.run, pair.against) for pair in comparison.pairs] == [*plain, (power, "greedy"), (power, low)]
    assert [pair.p_holm for pair in comparison.pairs] == holm([pair.p for pair in comparison.pairs])
    assert (comparison.pairs[3].won, comparison.pairs[3].lost) == (7, 0)
    text = comparison_report(comparison, None)
    assert f"The same of **{power}** against other methods:" in text
    assert "adjusted for all 5 pairs. MDE" in text


def test_several_samples_are_compared_by_a_permutation_test() -> None:
    bits = {"p": (POWER, "1111 1101 0100 0000 1011 1111"), "t": (PLAIN, "1101 1001 0000 0000 1001 1110")}
    runs = [
        Run(summarise(rows(row), [], known(sampler, 6, name, num_samples=4)), rows(row))
        for name, (sampler, row) in bits.items()
    ]
    comparison = compare(runs)
    (pair,) = comparison.pairs
    assert (pair.won, pair.lost, pair.p) == (None, None, 1 / 16)
    text = comparison_report(comparison, None)
    assert "| power (alpha 4, 10 moves) | +20.8 ± 4.2 | +12.7 to +29.0 | 11.7 | 0.0625 | 0.0625 |" in text
    assert "|            330 |" in text, "tokens of one sample, since the score is of one"


def test_two_runs_of_power_sampling_are_not_compared_with_each_other() -> None:
    """Each is compared with what is not power sampling: more pairs would only make Holm's p values larger."""
    verdicts = {"t1": "1100", "greedy": "1010", "power": "1110", "more": "1111"}
    samplers = {"t1": PLAIN, "greedy": {"kind": "greedy"}, "power": POWER, "more": {**POWER, "num_moves": 20}}
    comparison = compare([as_run(name, samplers[name], verdicts[name]) for name in verdicts])
    first, more = "power (alpha 4, 10 moves)", "power (alpha 4, 20 moves)"
    plain = [(name, "temperature 1") for name in ("greedy", first, more)]
    assert [(pair.run, pair.against) for pair in comparison.pairs] == [*plain, (first, "greedy"), (more, "greedy")]


def test_problems_of_one_template_count_as_one() -> None:
    """Power wins three of six templates of four problems each: every pattern of signs of three sums, not of twelve."""
    runs = [as_run("p", POWER, "1111" * 3 + "0" * 12), as_run("t", PLAIN, "0" * 24)]
    (pair,) = compare(runs).pairs
    assert pair.p == pytest.approx(2 / 2**12)
    grouped = []
    for run in runs:
        records = [replace(record, group=str(record.problem_id // 4)) for record in run.records]
        grouped.append(Run(summarise(records, [], run.manifest), records))
    comparison = compare(grouped)
    (clustered,) = comparison.pairs
    assert (clustered.p, clustered.won) == (2 / 2**3, None)
    mean, stderr, low, high, _ = clustered.difference
    assert stderr > 2 * pair.difference.stderr
    assert (high - mean, mean - low) == pytest.approx((2.571 * stderr, 2.571 * stderr), rel=1e-3), "t of 5 degrees"
    assert grouped[0].summary.accuracy["numeric"].interval == "t"
    assert "by the 6 groups that the data names" in " ".join(comparison_report(comparison, None).split())
    assert "Errors are those of 6 groups of problems" in " ".join(run_report(grouped[0].summary).split())


def test_differences_never_read_minus_zero() -> None:
    assert [points(value) for value in (-0.0, -0.0004, 0.0, 0.125)] == ["+0.0", "+0.0", "+0.0", "+12.5"]


def test_no_right_answer_is_no_certainty() -> None:
    runs = [as_run("p", POWER, "0" * 50), as_run("t", PLAIN, "0" * 50)]
    assert "| numeric | 0.0 % |   - |           0.0 to 7.1 % |" in run_report(runs[0].summary)
    text = comparison_report(compare(runs), None)
    assert "| 0.0 (0.0 to 7.1) |" in text
    assert "the 95 % interval (Wilson) instead" in " ".join(text.split())
    assert "|       +0.0 |  -7.1 to +7.1 |   - |   0 |    0 |   1 |      1 |" in text
    assert "± 0.0" not in text


def test_labels_tell_runs_apart() -> None:
    names = ("a/power", "b/power", "b/other", "g")
    runs = [as_run(name, {"kind": "greedy"} if name == "g" else POWER, "10") for name in names]
    method = "power (alpha 4, 10 moves)"
    assert [run.label for run in labelled(runs)] == [
        f"{method}, a/power",
        f"{method}, b/power",
        f"{method}, other",
        "greedy",
    ]
    with pytest.raises(UserError, match="named twice"):
        compare([runs[0], runs[1], as_run("b/../a/power", POWER, "10")])


def test_runs_on_different_data_are_refused() -> None:
    other = as_run("b", PLAIN, "11")
    other = other._replace(
        summary=replace(other.summary, run=other.manifest.model_copy(update={"data_sha256": "e" * 64}))
    )
    with pytest.raises(UserError, match="different data"):
        compare([as_run("a", POWER, "11"), other])


def test_runs_that_asked_differently_are_compared_with_a_warning() -> None:
    task = {"name": "gsm8k", "num_shots": 5, "max_new_tokens": 128, "stop": ["\n"]}
    comparison = compare([as_run("a", POWER, "11"), as_run("b", PLAIN, "10", task=task)])
    assert comparison.asked == ["solved examples", "token limit", "stop strings"]
    text = " ".join(comparison_report(comparison, None).split())
    assert "Warning (all runs): The runs asked differently (solved examples, token limit, stop strings)" in text
    assert compare([as_run("a", POWER, "11"), as_run("b", PLAIN, "10")]).asked == []


def test_the_warning_about_few_problems_counts_the_common_ones() -> None:
    runs = [as_run("a", POWER, "1" * 300), as_run("b", PLAIN, "0" + " " * 298 + "0")]
    warned = shared_warnings(compare(runs))
    (few,) = [sentence for sentence in warned if "Fewer than" in sentence]
    assert few.startswith("Fewer than 300 problems (2):")
    assert len(warned[few]) == 2
    runs = [as_run("a", POWER, "1" * 300), as_run("b", PLAIN, "0" * 300)]
    assert shared_warnings(compare(runs)) == {}


def test_report_of_several_runs(tmp_path: Path) -> None:
    power = save(tmp_path / "power", POWER, "1" * 12 + "0" * 8)
    plain = save(tmp_path / "t1", PLAIN, "0" * 10 + "1" * 4 + "0" * 6)
    text = write_report([plain, power], tmp_path)
    written = (tmp_path / "report.md").read_text(encoding="utf-8")
    figure = "![Scores against tokens and settings](accuracy.svg)\n\n"
    assert figure in written
    assert written.replace(figure, "") == f"{text}\n<!-- powersample comparison ffffffff -->\n"
    assert all((directory / name).exists() for directory in (power, plain) for name in ("summary.json", "report.md"))
    assert "# problems.jsonl, tiny: 2 methods on 20 common problems" in text
    assert "Warning (all runs): Fewer than 300 problems (20)" in text
    row = next(line for line in text.splitlines() if "+40.0 ±" in line)
    figures = "power (alpha 4, 10 moves) | +40.0 ± 15.2 | +10.2 to +69.8 | 42.6 | 10 | 2 | 0.0386 | 0.0386"
    assert [cell.strip() for cell in row.split("|")[1:-1]] == figures.split(" | ")
    assert (tmp_path / "accuracy.svg").read_text(encoding="utf-8").startswith("<svg ")
    assert max(map(len, text.splitlines())) <= 100
    (tmp_path / "again").mkdir()
    assert write_report([plain, power], tmp_path / "again") == text
    assert (tmp_path / "again/report.md").read_text(encoding="utf-8") == written


def test_the_comparison_lies_beside_the_runs_and_replaces_no_other_file(tmp_path: Path) -> None:
    runs = [save(tmp_path / "power", POWER, "1100"), save(tmp_path / "t1", PLAIN, "1000")]
    write_report(runs)
    names = ("report.md", "report.html", "accuracy.svg")
    before = {name: (tmp_path / name).read_text(encoding="utf-8") for name in names}
    picture = (tmp_path / "accuracy.png").read_bytes()
    assert all(text.endswith("\n<!-- powersample comparison ffffffff -->\n") for text in before.values())
    write_report(runs)
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in names} == before
    assert (tmp_path / "accuracy.png").read_bytes() == picture
    (runs[0] / "report.md").unlink()
    unmarked = before["report.md"].partition("<!--")[0]  # as an earlier version wrote it
    for name, text in [("report.md", "# My thesis\n"), ("report.md", unmarked), ("accuracy.svg", "<svg>mine</svg>")]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        for out in (None, tmp_path):
            with pytest.raises(UserError, match=rf"{re.escape(name)} is in the way .* move it to another place"):
                write_report(runs, out)
        assert (tmp_path / name).read_text(encoding="utf-8") == text
        (tmp_path / name).write_text(before[name], encoding="utf-8")
    mine = png(Figure(), "")
    for content in (mine, b"no picture", picture[:20]):
        (tmp_path / "accuracy.png").write_bytes(content)
        with pytest.raises(UserError, match=r"accuracy\.png is in the way"):
            write_report(runs)
        assert (tmp_path / "accuracy.png").read_bytes() == content
    assert not (runs[0] / "report.md").exists(), "refused before anything is written"


def test_a_comparison_of_other_runs_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samplers = {"power": POWER, "t1": PLAIN, "greedy": {"kind": "greedy"}}
    runs = {name: str(save(tmp_path / name, sampler, "1100")) for name, sampler in samplers.items()}
    for i, directory in enumerate(runs.values()):
        content = json.loads(Path(directory, "run.json").read_text())
        Path(directory, "run.json").write_text(json.dumps(content | {"fingerprint": f"{i}" * 64}))
    assert main(["report", runs["power"], runs["t1"]]) == 0
    assert capsys.readouterr().err.startswith(f"Read {tmp_path / 'report.html'}; the comparison was written there")
    assert main(["report", runs["t1"], runs["power"]]) == 0, "the same runs"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for missing in ("", "report.md", "report.html", "accuracy.svg"):
        if missing:
            before.pop(tmp_path / missing)
            (tmp_path / missing).unlink()
        capsys.readouterr()
        err = refused(["report", runs["t1"], runs["greedy"]], capsys)
        assert "is the comparison of other runs (fingerprints 00000000 11111111)" in err
        assert f"`powersample compare {runs['t1']} {runs['greedy']}` prints this one and writes nothing" in err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_reader_has_the_text_before_anything_is_drawn_and_the_files_though_he_has_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [save(tmp_path / "power", POWER, "1100"), save(tmp_path / "t1", PLAIN, "1000")]
    with monkeypatch.context() as patched:
        patched.setattr(make, "run_figures", lambda *_: pytest.fail(capsys.readouterr().out))
        with pytest.raises(pytest.fail.Exception, match="2 methods on 4 common problems"):
            print_reports(runs)

    def leave(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", leave)
    with pytest.raises(BrokenPipeError):
        print_reports(runs)
    assert {"report.md", "report.html", "accuracy.svg", "accuracy.png"} <= {path.name for path in tmp_path.iterdir()}


def test_a_fingerprint_does_not_end_the_mark(tmp_path: Path) -> None:
    runs = [save(tmp_path / "power", POWER, "1100"), save(tmp_path / "t1", PLAIN, "1000")]
    content = json.loads((runs[0] / "run.json").read_text())
    (runs[0] / "run.json").write_text(json.dumps(content | {"fingerprint": "--><b>"}))
    write_report(runs)
    last = (tmp_path / "report.html").read_text(encoding="utf-8").splitlines()[-1]
    assert last == "<!-- powersample comparison --&gt;&lt;b&gt; ffffffff -->"
    write_report(runs)


def uneven() -> list[Run]:
    """Two runs of which the first has also answered two problems that the other has not, both right."""
    return [as_run("p", POWER, "110011"), as_run("t", PLAIN, "1000  ")]


def test_the_scores_of_a_comparison_are_of_its_common_problems() -> None:
    compared = compare(uneven())
    assert [summary.accuracy["numeric"].mean for summary in compared.summaries] == [0.5, 0.25]
    assert [run.summary.accuracy["numeric"].mean for run in compared.runs] == [4 / 6, 0.25]
    assert compared.summaries[1] is compared.runs[1].summary
    report = comparison_report(compared, None)
    assert "2 methods on 4 common problems" in report
    assert "| power (alpha 4, 10 moves) | 50.0 ± 28.9 |" in report
    assert "over the 4 common problems" in " ".join(report.split())


def test_page_figure_and_report_show_any_score_of_the_common_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure | None] = []
    for run in uneven():
        records = [
            replace(one, scores=one.scores | {"strict": replace(one.scores["strict"], correct=one.problem_id == 3)})
            for one in run.records
        ]
        write(tmp_path / run.directory, make_run(run.manifest.sampler, 6), records)
    drawn = make.accuracy_figure
    monkeypatch.setattr(make, "accuracy_figure", lambda *of: figures.append(drawn(*of)) or figures[-1])
    runs = [str(tmp_path / "p"), str(tmp_path / "t")]
    said(["report", *runs, "--grader", "strict"], capsys)
    assert [axes.get_ylabel() for figure in figures if figure for axes in figure.axes] == [
        "% right (strict), 95 % interval"
    ]
    page, report = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert "Paired differences of the strict score against **temperature 1**" in report
    assert re.findall(r"<b>(.*?)</b>", page) == ["25.0 ± 25.0", "25.0 ± 25.0"]
    assert "<h2>% right, strict</h2>" in page
    assert "Mean ± standard error over the 4 common problems; the bars are 95 % intervals" in page
    said(["report", *runs], capsys)
    assert re.findall(r"<b>(.*?)</b>", (tmp_path / "report.html").read_text()) == ["50.0 ± 28.9", "25.0 ± 25.0"]
    reason = f"powersample: The run {runs[0]} has no score bold; it has strict, flexible, numeric.\n"
    for command in (["report", runs[0], "--grader", "bold"], ["report", *runs, "--grader", "bold"]):
        assert refused(command, capsys) == reason
    assert main(["report", runs[0], "--grader", "strict"]) == 0
    assert re.findall(r"<b>(.*?)</b>", (tmp_path / "p/report.html").read_text()) == ["16.7 ± 16.7"]
