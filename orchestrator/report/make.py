"""Writes the reports of runs: summary.json, report.md, report.html, timeline.svg, and the comparison of several runs.

All are derived files, which can be made again at any time. Nothing is written to run.json, records.jsonl and
telemetry.jsonl, from which they are made. What a terminal shows comes before the figures, which take longer to draw.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from html import escape
from pathlib import Path

from evals.types import UserError
from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.analysis.comparison import Comparison, compare
from orchestrator.analysis.load import Run, load_run, stored_score
from orchestrator.console import say
from orchestrator.inputs.prompts import run_prompts
from orchestrator.report.comparison_text import comparison_report
from orchestrator.report.figures import accuracy_figure
from orchestrator.report.page import RunOnPage, page, run_figures
from orchestrator.report.plotting import png, svg
from orchestrator.report.run_text import run_report
from orchestrator.report.timeline import timeline, workers
from orchestrator.rundir.files import write_atomically, writing
from orchestrator.wording import short

SUMMARY, REPORT, PAGE, TIMELINE = "summary.json", "report.md", "report.html", "timeline.svg"
FIGURE, PICTURE = "accuracy.svg", "accuracy.png"
MARK, MARK_END = "<!-- powersample comparison ", " -->"
"""Around the fingerprints of the runs in the last line or comment of a comparison's files: what may replace them."""


def print_reports(run_dirs: Sequence[Path], out: Path | None = None, grader: str = PRIMARY_METRIC) -> None:
    """Print the text of `write_report`, write the reports, and say on stderr where they are."""
    write_report(run_dirs, out, partial(print, end="", flush=True), grader)
    names = f"{SUMMARY}, {REPORT} and {PAGE}"
    if len(run_dirs) == 1:
        say(f"Read {run_dirs[0] / PAGE}; {names} were written there.")
    else:
        place, runs = beside(run_dirs) if out is None else out, ", ".join(map(str, run_dirs))
        say(f"Read {place / PAGE}; the comparison was written there as {PAGE} and {REPORT}, and {names} into {runs}.")


def beside(run_dirs: Sequence[Path]) -> Path:
    """The parent directory of the first run, where a comparison goes by default."""
    return run_dirs[0].resolve().parent


def write_report(
    run_dirs: Sequence[Path],
    out: Path | None = None,
    show: Callable[[str], object] = lambda text: None,
    grader: str = PRIMARY_METRIC,
) -> str:
    """Write summary.json, report.md, report.html and timeline.svg into every run directory; return what `show` shows.

    The score `grader` is the one that is compared, drawn and shown first.

    For several runs that is their comparison, which also goes into the directory `out` with its page and its figure; by
    default into the parent of the first run, where only a comparison of the same runs is replaced. Raises UserError
    for a directory that is missing or holds no run, for runs that cannot be compared, and where another file is in the
    way.
    """
    runs = [load_run(directory) for directory in run_dirs]
    grader, *_ = (stored_score(run, grader) for run in runs)  # of all, since any may lack it
    comparison = compare(runs, grader) if len(runs) > 1 else None
    place = beside(run_dirs) if out is None else out
    for name in (REPORT, PAGE, FIGURE, PICTURE) if comparison else ():
        check_replaceable(place / name, comparison if out is None else None)
    texts = [run_report(run.summary, TIMELINE if workers(run.telemetry) else None, grader) for run in runs]
    told = comparison_report(comparison, None) if comparison else texts[0]
    try:
        show(told)  # before the figures are drawn
    finally:  # also for a reader who has left
        shown = [write_run(run, text, grader) for run, text in zip(runs, texts, strict=True)]
        if comparison:
            write_comparison(comparison, shown, place)
    return told


def write_run(run: Run, text: str, grader: str) -> RunOnPage:
    """Write a run's summary, its report, which is `text`, its page by the score `grader` and its timeline."""
    plot = svg(timeline(run.telemetry), "Workers over time") if workers(run.telemetry) else None
    on_page = RunOnPage(run, run_prompts(run.manifest), [*run_figures(run, grader), *([plot] if plot else [])])
    summary = json.dumps(run.summary.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
    write(run.directory / SUMMARY, summary + "\n")
    write(run.directory / REPORT, text)
    write(run.directory / PAGE, page([on_page], None, None, grader))
    if plot:
        write(run.directory / TIMELINE, plot)
    return on_page


def write_comparison(comparison: Comparison, shown: Sequence[RunOnPage], place: Path) -> None:
    """Write a comparison, its page and its figure into the directory `place`, each with the mark of its runs."""
    pairs = zip(comparison.runs, comparison.summaries, strict=True)
    figure = accuracy_figure([run._replace(summary=summary) for run, summary in pairs], comparison.grader)
    mark = comparison_mark(comparison)
    plot = svg(figure, "Scores against tokens and settings") if figure else None
    labelled = [one._replace(run=run) for one, run in zip(shown, comparison.runs, strict=True)]
    texts = {
        REPORT: comparison_report(comparison, FIGURE if plot else None),
        PAGE: page(labelled, comparison, plot, comparison.grader),
        **({FIGURE: plot} if plot else {}),
    }
    for name, text in texts.items():
        write(place / name, f"{text.rstrip()}\n\n{mark}\n")
    if figure:
        write(place / PICTURE, png(figure, mark))


def comparison_mark(comparison: Comparison) -> str:
    """The last line or comment of a comparison's files, which names its runs by their fingerprints."""
    known = {short(run.manifest.fingerprint) or "unknown" for run in comparison.runs}
    return MARK + escape(" ".join(sorted(known))) + MARK_END


def check_replaceable(path: Path, same: Comparison | None) -> None:
    """Raises UserError if there is a file at `path` that is of no comparison, or of other runs than those of `same`."""
    if not path.exists():
        return
    last = mark_in(path)
    if not last.startswith(MARK):
        raise UserError(
            f"{path} is in the way of the comparison and is none itself, or an earlier version's; move it to another "
            "place."
        )
    if same is not None and last != comparison_mark(same):
        runs = " ".join(str(run.directory) for run in same.runs)
        named = last.removeprefix(MARK).removesuffix(MARK_END)
        raise UserError(
            f"{path} is the comparison of other runs (fingerprints {named}) and would be replaced; `powersample "
            f"compare {runs}` prints this one and writes nothing, or move {REPORT}, {PAGE}, {FIGURE} and "
            f"{PICTURE} of {path.parent} to another place."
        )


def mark_in(path: Path) -> str:
    """The mark of a comparison's file, if it is one: the last line of a text, the comment of a picture."""
    if path.suffix == ".png":
        from PIL import Image

        with suppress(OSError), Image.open(path) as picture:
            return str(picture.info.get("Comment", ""))
        return ""
    return path.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]


def write(path: Path, content: str | bytes) -> None:
    """Replace a derived file. Raises UserError if it cannot be written."""
    with writing(path, "make it writable"):
        write_atomically(path, content)
