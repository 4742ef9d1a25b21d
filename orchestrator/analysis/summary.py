"""Computes the summary of a run, strict JSON, from its records, telemetry and manifest.

What an older run.json leaves out is None in the summary and "unknown" in a report.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import inf
from typing import Any

import numpy as np

from evals.record import Record
from orchestrator.analysis.accuracy import PRIMARY_METRIC, at_k, estimate, graders, groups_of, is_right, question_means
from orchestrator.analysis.diagnostics import average, chain_statistics
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.reading.telemetry import events
from orchestrator.rundir.reading.telemetry import timings as phase_timings
from orchestrator.rundir.telemetry_rows import TelemetryRow, WorkerState
from orchestrator.wording import fill_in

WARNINGS = {
    "incomplete": "The run is incomplete: {num_records:,} of {wanted:,} answers are recorded, so all figures are "
    "provisional; start it again to finish it.",
    "failed": "Answers that failed and count as wrong: {num_failed:,>0} (problems {ids}); records.jsonl says why.",
    "truncated": "{truncated_rate:percent>0.02} % of the answers were cut off at the limit| of {run[max_new_tokens]:,} "
    "tokens|; a longer task.max_new_tokens would tell whether they are wrong.",
    "silent": "In {no_answer_rate:percent>0.02} % of the texts the numeric grader found no answer at all.",
    "undecided": "{num_undecided:,>0} answers are formulas that the symbolic checker could not decide (not installed, "
    "too slow, or it failed); they count as wrong until `powersample regrade` decides them.",
    "rescored": "The scores are those of a later `powersample regrade` (scores.jsonl), by which {num_rescored:,>0} "
    "answers have other verdicts than when they were sampled.",
    "paper": "The rules of paper do not leave p^alpha invariant: its scores are biased, for comparison only. {paper}",
    "null": "{chain[null_rate]:percent>0.95} % of the moves proposed the answer they started from: the chains hardly "
    "move; the model is sure of its answers, or alpha is too large.",
    "acceptance": "Only {chain[acceptance]:percent<0.01} % of the proposals of another answer were accepted: the "
    "chains are stuck.",
    "rise": "Mean log p still rose over the last {rise[moves]} moves, by {rise[mean]:.2f} ± {rise[stderr]:.2f}: the "
    "chains have not converged; more moves would change the scores.",
    "ess": "The effective sample size is {chain[ess_share]:percent<0.10} % of the candidates: a few of them carry all "
    "the weight.",
    "damaged": "Lines of telemetry.jsonl that are damaged and could not be read: {num_damaged_telemetry:,>0}; "
    "seconds and memory may be too low; the scores are not affected.",
    "few": "Fewer than 300 problems ({num_problems:,<300}): the intervals are wide, and small differences mean "
    "nothing.",
}
"""Name -> warning about a summary's figures; it applies if its first figure is beyond the limit in the format."""


def summarise(
    records: Sequence[Record],
    telemetry: Sequence[TelemetryRow],
    run: Manifest,
    num_damaged_telemetry: int = 0,
    num_rescored: int | None = None,
) -> dict[str, Any]:
    """The summary of a run, finished or not: scores, rates, seconds, tokens, chain statistics, memory, warnings.

    A failed record counts as wrong in every score; rates and means are over the records that are not failed. Figures
    without anything to compute them from are None. `num_deaths` counts workers that died, `num_damaged_telemetry` the
    telemetry rows that were skipped, `num_rescored` the records whose verdicts a regrade has changed (None:
    there was none).
    """
    done = [record for record in records if record.status == "ok"]
    num_problems, num_samples, limit = run.num_problems, run.num_samples, run.cut_limit
    limited = done if limit < inf else []
    timings = time_spent(done, telemetry)
    tokens = token_counts(done)
    groups = groups_of(records)
    summary = {
        "run": run.model_dump(),
        "num_problems": num_problems,
        "num_samples": num_samples,
        "num_records": len(records),
        "num_owed": max(0, num_problems * num_samples - len(records)),
        "num_failed": len(records) - len(done),
        "failed": sorted([record.problem_id, record.sample_index] for record in records if record.status == "failed"),
        "num_groups": len(set(groups.values())) or None,
        "accuracy": {
            name: estimate(question_means(records, name), num_samples == 1, groups) for name in graders(records)
        },
        **at_k(records, num_samples),
        "no_answer_rate": average([record.scores[PRIMARY_METRIC].kind == "none" for record in done]),
        "num_undecided": sum(record.scores[PRIMARY_METRIC].kind == "undecided" for record in done),
        "num_rescored": num_rescored,
        "truncated_rate": average([truncated(record, limit) for record in limited]),
        "right_if_truncated": average(
            [is_right(record, PRIMARY_METRIC) for record in limited if truncated(record, limit)]
        ),
        "right_if_finished": average(
            [is_right(record, PRIMARY_METRIC) for record in limited if not truncated(record, limit)]
        ),
        "num_disagreements": sum(len({is_right(record, name) for name in record.scores}) > 1 for record in done),
        "timings": timings,
        "tokens": tokens,
        "throughput": {
            "tokens_per_second": ratio(tokens["generated"], timings["sampling_seconds"]),
            "problems_per_second": ratio(len(done), timings["sampling_seconds"]),
        },
        "chain": chain_statistics(records),
        "memory": memory_peaks(done, telemetry),
        "num_deaths": len(events(telemetry, "death")),
        "num_damaged_telemetry": num_damaged_telemetry,
    }
    return {**summary, "warnings": list(warnings(summary).values())}


def truncated(record: Record, limit: float) -> bool:
    """Whether a limit cut the answer off, at `limit` tokens or more (see `Manifest.cut_limit`)."""
    return record.ended == "length" and (record.tokens.answer or 0) >= limit


def time_spent(done: Sequence[Record], telemetry: Sequence[TelemetryRow]) -> dict[str, Any]:
    """Seconds of the run's phases over all its starts, and of single answers from submission to record.

    Without telemetry the sampling time is that in which any answer was being sampled, and the other phases are None.
    """
    seconds: dict[str, Any] = phase_timings(telemetry)
    if not seconds["sampling_seconds"]:
        seconds = dict.fromkeys(seconds) | {"sampling_seconds": busy_seconds(done), "num_starts": seconds["num_starts"]}
    each = [record.timings.wall_seconds for record in done if record.timings.wall_seconds is not None]
    p50, p95, longest = np.quantile(each, [0.5, 0.95, 1.0]).tolist() if each else [None] * 3
    return {**seconds, "answer_seconds": {"mean": average(each), "p50": p50, "p95": p95, "max": longest}}


def busy_seconds(done: Iterable[Record]) -> float | None:
    """Length of the union of the records' [start, end]: a pause between two starts of a run does not count."""
    total, until = 0.0, -inf
    spans = [(one.timings.start or 0.0, one.timings.end) for one in done if one.timings.end is not None]
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total if spans else None


def token_counts(done: Sequence[Record]) -> dict[str, Any]:
    """Sums over all records, and means per answer."""
    names = ("prompt", "answer", "generated", "prefilled")
    sums = {name: sum(getattr(record.tokens, name) or 0 for record in done) for name in names}
    means = {f"mean_{name}": ratio(total, len(done)) for name, total in sums.items()}
    return {**sums, **means}


def memory_peaks(done: Iterable[Record], telemetry: Iterable[TelemetryRow]) -> dict[str, Any]:
    """Largest memory of each worker in bytes: the device's where there is one, else the process's resident set.

    A worker is identified by its rank if there is one: its readings and its records then count as one worker's.
    """
    samples = [row for row in telemetry if isinstance(row, WorkerState)]
    peaks: dict[str, int] = {}
    kinds: set[str] = set()
    readings = [(row.rank, row.worker, asdict(row.memory)) for row in samples]
    readings += [(record.worker.rank, record.worker.name, asdict(record.memory)) for record in done]
    for rank, name, reading in readings:
        kind, field = ("rss", "peak_rss_bytes") if reading.get("peak_bytes") is None else ("device", "peak_bytes")
        if (peak := reading.get(field)) is not None:
            worker = str(name if rank is None else rank)
            peaks[worker] = max(peaks.get(worker, 0), peak)
            kinds.add(kind)
    return {
        "peak_bytes": dict(sorted(peaks.items())),
        "largest_peak_bytes": max(peaks.values(), default=None),
        "kind": kinds.pop() if len(kinds) == 1 else None,
        "total_bytes": max((reading.get("total_bytes") or 0 for *_, reading in readings), default=0) or None,
        "slots": max((row.slots for row in samples if row.slots is not None), default=None),
        "mean_active_slots": mean_active_slots(samples),
    }


def mean_active_slots(samples: Iterable[WorkerState]) -> float | None:
    """Mean slots in use per engine step (each draws one token a step), from the first to the last row of a process."""
    processes: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for row in samples:
        if row.steps is not None and row.generated_tokens is not None:
            processes[row.worker, row.pid].append((row.steps, row.generated_tokens))
    steps, tokens = (sum(rows[-1][i] - rows[0][i] for rows in processes.values()) for i in (0, 1))
    return ratio(tokens, steps)


def warnings(summary: Mapping[str, Any]) -> dict[str, str]:
    """The sentences of WARNINGS that apply, under their names."""
    rise, failed = summary["chain"]["log_p_rise"], summary["failed"]
    rising = rise is not None and rise["stderr"] is not None and rise["mean"] > rise["stderr"]
    paper = "They also end an answer at the length of the one before."
    figures = {
        **summary,
        "wanted": summary["num_records"] + summary["num_owed"] if summary["num_owed"] else None,
        "ids": ", ".join(str(problem_id) for problem_id, _ in failed[:10]) + (", …" if len(failed) > 10 else ""),
        "paper": paper if summary["run"]["sampler"].get("kind") == "paper" else None,
        "rise": rise if rising else None,
    }
    return {name: sentence for name, warning in WARNINGS.items() if (sentence := fill_in(warning, figures))}


def ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
