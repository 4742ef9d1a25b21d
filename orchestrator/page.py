"""report.html: one or several runs as one page that needs nothing else. Every figure is taken from where report.md
takes it. Texts of models are hostile until shown otherwise: they enter as JSON without markup, a script of ours makes
text nodes of them, and no other script and no address is allowed to the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from evals.types import Record
from orchestrator.browse import Shown, flags, table
from orchestrator.compare import Comparison
from orchestrator.figures import FATES, length_figure, log_p_figure
from orchestrator.layout import duration, percent, with_error
from orchestrator.render import facts, headline, provenance, score_parts, title
from orchestrator.render_comparison import comparison_parts, comparison_title, shared_warnings
from orchestrator.run_record import cut_limit
from orchestrator.scores import HEADLINE

NUM_SLOWEST = 10


def page(shown: Sequence[Shown], comparison: Comparison | None, plot: str | None) -> str:
    """The page of one run, or of several and their comparison with its figure `plot`."""
    folder = Path(__file__).parent
    summaries = [one.run.summary for one in shown]
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    environment.filters["bold"] = bold
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    script = (folder / "page.js").read_text(encoding="utf-8")
    if comparison is None:
        words, warned = title(summaries[0]), {sentence: [] for sentence in summaries[0]["warnings"]}
    else:
        words, warned = comparison_title(comparison), shared_warnings(comparison)
    return environment.get_template("page.html").render(
        title=words,
        warnings=[(sentence, labels if len(labels) < len(shown) else []) for sentence, labels in warned.items()],
        scores=[score(one) for one in shown],
        parts=score_parts(summaries[0]) if comparison is None else comparison_parts(comparison),
        plot=Markup(plot or ""),
        runs=[section(one) for one in shown],
        provenance=provenance(*summaries),
        table=table(shown, comparison and comparison.baseline),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def score(one: Shown) -> dict[str, Any]:
    """The headline score with its interval, in words and in % for the bar."""
    found = one.run.summary["accuracy"][HEADLINE]
    interval = found["ci95"]
    return {
        "label": one.label,
        "name": HEADLINE,
        "headline": headline(one.run.summary),
        "words": with_error(found),
        "interval": f"95 % interval {percent(interval[0])} to {percent(interval[1])} %" if interval else "",
        "at": [round(100 * value, 2) for value in (interval[0], found["mean"], interval[1])] if interval else None,
    }


def section(one: Shown) -> dict[str, Any]:
    """One run's figures beside the table of problems."""
    summary, records = one.run.summary, one.run.records
    figures = [length_figure(fates(records, cut_limit(summary["run"]))), log_p_figure(summary["chain"]), one.timeline]
    return {
        "label": one.label,
        "scores": score_parts(summary),
        "facts": facts(summary),
        "figures": [Markup(figure) for figure in figures if figure],
        "slowest": slowest(records),
        "content": json.dumps(one.content, indent=2),
        "place": f"{one.run.directory.name}/run.json",
        "missing": one.asked.missing,
    }


def fates(records: Sequence[Record], limit: float) -> dict[str, list[int]]:
    """What became of the answers -> their lengths in tokens; failed ones have none."""
    found: dict[str, list[int]] = {fate: [] for fate in FATES}
    for record in records:
        if record.status == "ok":
            fate = [fate for fate in FATES if fate in flags(record, limit)][-1]
            found[fate].append(record.tokens["answer"])
    return {fate: lengths for fate, lengths in found.items() if lengths}


def slowest(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The answers that took longest from submission to record."""
    timed = [record for record in records if "wall_seconds" in record.timings]
    return [
        {
            "id": record.problem_id,
            "sample": record.sample_index,
            "seconds": duration(record.timings["wall_seconds"]),
            "answer": record.tokens["answer"],
            "generated": record.tokens["generated"],
            "ended": record.ended,
        }
        for record in sorted(timed, key=lambda record: -record.timings["wall_seconds"])[:NUM_SLOWEST]
    ]


def bold(text: str) -> Markup:
    """A sentence of the reports, whose one markup is `**`."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))
