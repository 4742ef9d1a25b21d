"""Makes report.html: one or several runs as one HTML page that loads nothing, with the figures of report.md.

Texts of models are not trusted: they enter as JSON without markup, the page's own script makes text nodes of them, and
its security policy allows no other script and no address.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from evals.grading.grade import score_name
from evals.record import Record, as_json
from evals.samplers.trace import MoveFigures
from orchestrator.analysis.accuracy import PRIMARY_METRIC, by_problem, is_right, question_means
from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.diagnostics import shown_moves
from orchestrator.analysis.load import Run
from orchestrator.analysis.summarise import graders_differ, truncated
from orchestrator.inputs.prompts import RunPrompts
from orchestrator.report.comparison_text import comparison_parts, comparison_title, shared_warnings
from orchestrator.report.facts import facts
from orchestrator.report.figures import OUTCOMES, length_figure, log_p_figure
from orchestrator.report.layout import Table
from orchestrator.report.plotting import svg
from orchestrator.report.run_text import headline, provenance, score_parts, title
from orchestrator.report.timeline import event_table
from orchestrator.wording import duration

NUM_SLOWEST = 10
MAX_TRACE = 101
"""Points of a chain's log p that a page keeps."""
MAX_TOKEN_IDS = 1_000_000
"""A page leaves token ids to records.jsonl where there are more: they would be most of it."""


class RunOnPage(NamedTuple):
    """A run on a page, with its prompts and its figures as SVG text."""

    run: Run
    asked: RunPrompts
    figures: Sequence[str]


def page(shown: Sequence[RunOnPage], comparison: Comparison | None, plot: str | None, grader: str) -> str:
    """The page by the score `grader` of one run, or of several and their comparison with its figure `plot`."""
    folder = Path(__file__).parent
    summaries = [one.run.summary for one in shown]
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    environment.filters.update(bold=bold, pretty=partial(json.dumps, indent=2))
    for one in (event_table, facts, headline, inline, score_parts, slowest):
        environment.globals[one.__name__] = one
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    script = (folder / "page.js").read_text(encoding="utf-8")
    if comparison is None:
        heading, warned = title(summaries[0]), {sentence: [] for sentence in summaries[0].warnings}
    else:
        heading, warned = comparison_title(comparison), shared_warnings(comparison)
    return environment.get_template("page.html").render(
        title=heading,
        warnings=[(sentence, labels if len(labels) < len(shown) else []) for sentence, labels in warned.items()],
        metric=grader,
        metric_name=score_name(grader, summaries[0].run.task),
        scores=[one.accuracy[grader] for one in (summaries if comparison is None else comparison.summaries)],
        num_common=comparison and len(comparison.common),
        shown=shown,
        parts=score_parts(summaries[0], grader) if comparison is None else comparison_parts(comparison),
        plot=inline(plot, "plot") if plot else "",
        provenance=provenance(*summaries),
        problems=problems(shown, comparison and comparison.baseline, grader),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def bold(text: str) -> Markup:
    """A sentence of the reports as HTML; its only markup is `**`."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))


def inline(figure: str, name: str) -> Markup:
    """SVG text as part of a page: its ids begin with a `name` that no other figure on the page has."""
    return Markup(re.sub("<[^>]+>", lambda tag: re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", tag[0]), figure))


def run_figures(run: Run, grader: str) -> list[str]:
    """A run's answer lengths and log p by move as SVG text, as far as there is anything to draw."""
    lengths: dict[str, list[int]] = {fate: [] for fate in OUTCOMES}
    for record in run.records:
        if record.status == "ok":
            labels = flags(record, run.manifest.cut_limit, grader)
            lengths[[fate for fate in OUTCOMES if fate in labels][-1]].append(record.tokens.answer or 0)
    drawn = {"Answer lengths": length_figure(lengths), "Log p by move": log_p_figure(run.summary.chain.log_p_by_move)}
    return [svg(figure, title) for title, figure in drawn.items() if figure]


def slowest(records: Sequence[Record]) -> Table:
    """The table of the answers that took longest from submission to record; its first column is the problem id."""
    timed = [(record.timings.wall_seconds, record) for record in records if record.timings.wall_seconds is not None]
    rows = []
    for seconds, record in sorted(timed, key=lambda one: -one[0])[:NUM_SLOWEST]:
        lengths = record.tokens.answer, record.tokens.generated
        rows.append([*map(str, record.key), duration(seconds), *map(str, lengths), record.ended])
    return Table(["problem", "sample", "time", "answer tokens", "generated", "ended"], rows)


def problems(shown: Sequence[RunOnPage], baseline: str | None, grader: str) -> dict[str, Any]:
    """The page's table of problems as JSON: each that a run has answered, in order, with all answers of all runs.

    `prefix` is what all prompts begin with; `prompts` has one prompt if it is the same in all runs, else one a run.
    """
    answers = [by_problem(one.run.records) for one in shown]
    means = [question_means(one.run.records, grader) for one in shown]
    prefix = commonprefix([prompt for one in shown for prompt in one.asked.prompts.values()])  # noqa: RUF071
    ids = sum(len(record.token_ids) for one in shown for record in one.run.records) <= MAX_TOKEN_IDS
    limits = [one.run.manifest.cut_limit for one in shown]
    rows = []
    for problem_id in sorted(set().union(*answers)):
        problem = next((one.asked.problems[problem_id] for one in shown if problem_id in one.asked.problems), None)
        prompts = [one.asked.prompts.get(problem_id) for one in shown]
        cut = [prompt and prompt[len(prefix) :] for prompt in prompts]
        rows.append(
            {
                "id": problem_id,
                "question": problem and problem.question,
                "gold": problem and problem.solution,
                "prompts": cut if len(set(cut)) > 1 else cut[:1],
                "means": [mean.get(problem_id) for mean in means],
                "answers": [
                    [answer(record, limit, ids, grader) for record in by_id.get(problem_id, [])]
                    for limit, by_id in zip(limits, answers, strict=True)
                ],
            }
        )
    labels = [one.run.label for one in shown]
    return {
        "runs": labels,
        "places": [f"{one.run.directory.name}/records.jsonl" for one in shown],
        "baseline": labels.index(baseline) if baseline in labels else None,
        "headline": grader,
        "prefix": prefix,
        "missing": [one.asked.missing for one in shown],
        "problems": rows,
    }


def answer(record: Record, limit: float, ids: bool, grader: str) -> dict[str, Any]:
    """A record as the page shows it; with token ids if `ids`."""
    trace = (isinstance(record.chain, MoveFigures) and record.chain.log_p_trace) or ()
    chain = {name: value for name, value in record.chain.reported().items() if name not in ("log_p_trace", "states")}
    thought = len(record.text) if record.thought == "open" else record.thought
    return {
        "sample": record.sample_index,
        "flags": flags(record, limit, grader),
        "thought": record.text[:thought],
        "text": record.text[thought:],
        "scores": as_json(record.scores),
        "ended": record.ended,
        "tokens": asdict(record.tokens),
        "ids": record.token_ids if ids else None,
        "chain": shortened(chain),
        "trace": [[move, trace[move]] for move in shown_moves(len(trace), MAX_TRACE)],
        "seconds": shortened(record.timings.wall_seconds),
        "worker": record.worker.name,
        "error": record.error,
    }


def flags(record: Record, limit: float, grader: str) -> list[str]:
    """Labels of an answer to filter by. Each share of the summary is that of the answers with one of these."""
    done = record.status == "ok"
    kind = record.scores[PRIMARY_METRIC].kind if done else None
    conditions = {
        "right" if is_right(record, grader) else "wrong": True,
        "no answer": kind == "none",
        "open thought": kind == "open thought",
        "unfinished": kind == "unfinished",
        "truncated": done and truncated(record, limit),
        "failed": not done,
        "graders differ": graders_differ(record),
    }
    return [flag for flag, holds in conditions.items() if holds]


def shortened(value: Any) -> Any:
    """A JSON value with its floats rounded to five significant digits."""
    if isinstance(value, Mapping):
        return {name: shortened(one) for name, one in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value
