"""Writes the reports of runs: summary.json, report.md, report.html, timeline.svg, and the comparison of several runs.

All are derived files, which can be made again at any time. Nothing is written to run.json, records.jsonl and
telemetry.jsonl, from which they are made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from evals.types import UserError
from orchestrator.analysis.comparison import Comparison, compare
from orchestrator.analysis.load import load_run
from orchestrator.console import say
from orchestrator.inputs.prompts import run_prompts
from orchestrator.report.comparison_text import comparison_report
from orchestrator.report.figures import accuracy_figure
from orchestrator.report.page import RunOnPage, page
from orchestrator.report.run_text import run_report
from orchestrator.report.timeline import timeline
from orchestrator.rundir.files import write_atomically, writing
from orchestrator.wording import short

SUMMARY, REPORT, PAGE, FIGURE, TIMELINE = "summary.json", "report.md", "report.html", "accuracy.svg", "timeline.svg"
MARK, MARK_END = "<!-- powersample comparison ", " -->"
"""Around the fingerprints of the runs in the last line of a comparison's files, which say what may replace them."""


def print_reports(run_dirs: Sequence[Path], out: Path | None = None) -> None:
    """Write reports, print the text that `write_report` returns, and say on stderr where they are."""
    print(write_report(run_dirs, out), end="", flush=True)
    names = f"{SUMMARY}, {REPORT} and {PAGE}"
    if len(run_dirs) == 1:
        say(f"Read {run_dirs[0] / PAGE}; {names} were written there.")
    else:
        place, runs = beside(run_dirs) if out is None else out, ", ".join(map(str, run_dirs))
        say(f"Read {place / PAGE}; the comparison was written there as {PAGE} and {REPORT}, and {names} into {runs}.")


def beside(run_dirs: Sequence[Path]) -> Path:
    """The parent directory of the first run, where a comparison goes by default."""
    return run_dirs[0].resolve().parent


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> str:
    """Write summary.json, report.md, report.html and timeline.svg into every run directory; return what to print.

    For several runs that is their comparison, which also goes into the directory `out` with its page and its figure; by
    default into the parent of the first run, where only a comparison of the same runs is replaced. Raises UserError
    for a directory that is missing or holds no run, for runs that cannot be compared, and where another file is in the
    way.
    """
    runs = [load_run(directory) for directory in run_dirs]
    comparison = compare(runs) if len(runs) > 1 else None
    place = beside(run_dirs) if out is None else out
    for name in (REPORT, PAGE, FIGURE) if comparison else ():
        check_replaceable(place / name, comparison if out is None else None)
    shown, text = [], ""
    for run in runs:
        plot = timeline(run.telemetry)
        shown.append(RunOnPage(run, run_prompts(run.manifest), plot))
        text = run_report(run.summary, TIMELINE if plot else None)
        summary = json.dumps(run.summary.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
        write(run.directory / SUMMARY, summary + "\n")
        write(run.directory / REPORT, text)
        write(run.directory / PAGE, page(shown[-1:], None, None))
        if plot:
            write(run.directory / TIMELINE, plot)
    return text if comparison is None else write_comparison(comparison, shown, place)


def write_comparison(comparison: Comparison, shown: Sequence[RunOnPage], place: Path) -> str:
    """Write a comparison, its page and its figure into the directory `place`; return the text for a screen."""
    plot = accuracy_figure(comparison.runs)
    labelled = [one._replace(run=run) for one, run in zip(shown, comparison.runs, strict=True)]
    texts = {
        REPORT: comparison_report(comparison, FIGURE if plot else None),
        PAGE: page(labelled, comparison, plot),
        **({FIGURE: plot} if plot else {}),
    }
    for name, text in texts.items():
        write(place / name, f"{text.rstrip()}\n\n{comparison_mark(comparison)}\n")
    return comparison_report(comparison, None)


def comparison_mark(comparison: Comparison) -> str:
    """The last line of a comparison's files, which names its runs by their fingerprints."""
    known = {short(run.manifest.fingerprint) or "unknown" for run in comparison.runs}
    return MARK + escape(" ".join(sorted(known))) + MARK_END


def check_replaceable(path: Path, same: Comparison | None) -> None:
    """Raises UserError if there is a file at `path` that is of no comparison, or of other runs than those of `same`."""
    if not path.exists():
        return
    last = path.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
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
            f"compare {runs}` prints this one and writes nothing, or move {REPORT}, {PAGE} and {FIGURE} of "
            f"{path.parent} to another place."
        )


def write(path: Path, text: str) -> None:
    """Replace a derived file. Raises UserError if it cannot be written."""
    with writing(path, "make it writable"):
        write_atomically(path, text)
