"""What the page's table of problems holds, as JSON values: what was asked, and each run's answers with their grades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import Any, NamedTuple

import numpy as np

from evals.types import Record
from orchestrator.asked import Asked
from orchestrator.compare import Run
from orchestrator.reduce import truncated
from orchestrator.run_record import cut_limit
from orchestrator.scores import HEADLINE, by_problem, question_means, right

MAX_TRACE = 101
"""Points of a chain's log p that a page keeps."""
MAX_TOKEN_IDS = 1_000_000
"""A page leaves token ids to records.jsonl where there are more: they would be most of it."""


class Shown(NamedTuple):
    """A run on a page."""

    label: str
    run: Run
    content: Mapping[str, Any]
    """What run.json says."""
    asked: Asked
    timeline: str | None


def table(shown: Sequence[Shown], baseline: str | None) -> dict[str, Any]:
    """Every problem that a run has answered, in order, with all answers of all runs.

    `prefix` is what all prompts begin with; `prompts` has one prompt where all runs asked the same, else one a run.
    """
    answers = [by_problem(one.run.records) for one in shown]
    means = [question_means(one.run.records, HEADLINE) for one in shown]
    prompts = [prompt for one in shown for prompt in one.asked.prompts.values()]
    prefix = commonprefix(prompts)  # noqa: RUF071 - of characters, as wanted
    ids = sum(len(record.token_ids) for one in shown for record in one.run.records) <= MAX_TOKEN_IDS
    rows = []
    for problem_id in sorted(set().union(*answers)):
        problem = next((one.asked.problems[problem_id] for one in shown if problem_id in one.asked.problems), None)
        asked = [one.asked.prompts.get(problem_id) for one in shown]
        cut = [prompt and prompt[len(prefix) :] for prompt in asked]
        rows.append(
            {
                "id": problem_id,
                "question": problem and problem.question,
                "gold": problem and problem.answer,
                "prompts": cut if len(set(cut)) > 1 else cut[:1],
                "means": [mean.get(problem_id) for mean in means],
                "answers": [
                    [answer(record, cut_limit(one.run.summary["run"]), ids) for record in found.get(problem_id, [])]
                    for one, found in zip(shown, answers, strict=True)
                ],
            }
        )
    labels = [one.label for one in shown]
    return {
        "runs": labels,
        "places": [f"{one.run.directory.name}/records.jsonl" for one in shown],
        "baseline": labels.index(baseline) if baseline in labels else None,
        "headline": HEADLINE,
        "prefix": prefix,
        "missing": [one.asked.missing for one in shown],
        "problems": rows,
    }


def answer(record: Record, limit: float, ids: bool) -> dict[str, Any]:
    """A record as the page shows it; with token ids if `ids`."""
    chain = {name: shortened(value) for name, value in record.chain.items() if name != "log_p_trace"}
    return {
        "sample": record.sample_index,
        "flags": flags(record, limit),
        "text": record.text,
        "scores": record.scores,
        "ended": record.ended,
        "tokens": record.tokens,
        "ids": record.token_ids if ids else None,
        "chain": chain,
        "trace": thinned(record.chain.get("log_p_trace") or []),
        "seconds": shortened(record.timings.get("wall_seconds")),
        "worker": record.worker.get("name"),
        "error": record.error,
    }


def flags(record: Record, limit: float) -> list[str]:
    """What a reader may filter by. Each share of the summary is that of the answers with one of these."""
    done = record.status == "ok"
    return [
        "right" if right(record, HEADLINE) else "wrong",
        *(["no answer"] if done and record.scores[HEADLINE]["kind"] == "none" else []),
        *(["truncated"] if done and truncated(record, limit) else []),
        *([] if done else ["failed"]),
        *(["graders differ"] if len({right(record, name) for name in record.scores}) > 1 else []),
    ]


def thinned(trace: Sequence[float]) -> list[list[float]]:
    """[move, log p] of at most MAX_TRACE moves, the first and the last among them."""
    moves = np.linspace(0, len(trace) - 1, min(len(trace), MAX_TRACE)) if trace else []
    return [[move, trace[move]] for move in sorted({round(move) for move in moves})]


def shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: shortened(one) for name, one in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value
