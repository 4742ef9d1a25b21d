"""The reducer: a run's records, telemetry and run.json folded into one summary. Pure; knows no files and no layout.

It reads of run.json: `config` (`sampler`, `task`, `seed`, `num_samples`, `model`, `data`), `num_problems` (of the run,
after any limit), `fingerprint`, and of `provenance` `model` {name, sha256}, `data` {name, sha256, rows}, `git_commit`,
`dtype`. What is missing there is None in the summary and "unknown" in a report. The summary is strict JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import PurePath
from typing import Any

import numpy as np

from evals.types import Record
from orchestrator.diagnostics import average, chain_statistics, chain_warnings
from orchestrator.scores import HEADLINE, at_k, estimate, graders, groups_of, question_means, right
from orchestrator.telemetry import timings as phase_timings

FEW_PROBLEMS = 300
MAX_QUIET_RATE = 0.02
"""Share of truncated answers, and of texts without an answer, above which a warning says so."""


def summarise(
    records: Sequence[Record],
    telemetry: Sequence[Mapping[str, Any]],
    run: Mapping[str, Any],
    num_damaged_telemetry: int = 0,
    num_rescored: int | None = None,
) -> dict[str, Any]:
    """The summary of a run, whole or not: scores, rates, seconds, tokens, chain statistics, memory, warnings.

    A failed record counts as wrong in every score; rates and means are over the records that are not failed. Figures
    that there is nothing to compute from are None. `num_deaths` counts workers that died, `num_damaged_telemetry` the
    telemetry rows that were skipped, `num_rescored` the records whose verdicts a regrade has changed (None:
    there was none).
    """
    identity = describe(run)
    done = [record for record in records if record.status == "ok"]
    num_problems = identity["num_problems"]
    if num_problems is None:
        num_problems = len({record.problem_id for record in records})
    num_samples = identity["num_samples"]
    limit, limited = cut_limit(identity), done if has_limit(identity["sampler"]) else []
    timings = time_spent(done, telemetry)
    tokens = token_counts(done)
    groups = groups_of(records)
    summary = {
        "run": identity,
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
        "no_answer_rate": rate(record.scores[HEADLINE]["kind"] == "none" for record in done),
        "num_undecided": sum(record.scores[HEADLINE]["kind"] == "undecided" for record in done),
        "num_rescored": num_rescored,
        "truncated_rate": rate(truncated(record, limit) for record in limited),
        "right_if_truncated": rate(right(record, HEADLINE) for record in limited if truncated(record, limit)),
        "right_if_finished": rate(right(record, HEADLINE) for record in limited if not truncated(record, limit)),
        "num_disagreements": sum(len({right(record, name) for name in record.scores}) > 1 for record in done),
        "timings": timings,
        "tokens": tokens,
        "throughput": {
            "tokens_per_second": ratio(tokens["generated"], timings["sampling_seconds"]),
            "problems_per_second": ratio(len(done), timings["sampling_seconds"]),
        },
        "chain": chain_statistics(records),
        "memory": memory_peaks(done, telemetry),
        "num_deaths": sum(row.get("event") == "death" for row in telemetry),
        "num_damaged_telemetry": num_damaged_telemetry,
    }
    return {**summary, "warnings": warnings(summary)}


def describe(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader must know of a run to trust and repeat it, taken from run.json."""
    config, provenance = run.get("config", {}), run.get("provenance", {})
    model, data = provenance.get("model", {}), provenance.get("data", {})
    task = config.get("task", {})
    return {
        "method": method(config.get("sampler", {})),
        "sampler": config.get("sampler", {}),
        "task": task.get("name"),
        "preset": task.get("preset"),
        "prompts_sha256": provenance.get("prompts_sha256"),
        "num_shots": task.get("num_shots"),
        "max_new_tokens": task.get("max_new_tokens") if has_limit(config.get("sampler", {})) else None,
        "stop": task.get("stop"),
        "num_problems": run.get("num_problems"),
        "num_samples": config.get("num_samples", 1),
        "model": model.get("name", config.get("model")),
        "model_sha256": model.get("sha256"),
        "data": data.get("name", config.get("data")),
        "data_sha256": data.get("sha256"),
        "data_rows": data.get("rows"),
        "seed": config.get("seed"),
        "dtype": provenance.get("dtype"),
        "git_commit": provenance.get("git_commit"),
        "fingerprint": run.get("fingerprint"),
    }


def has_limit(sampler: Mapping[str, Any]) -> bool:
    """Whether the task's token limit ends answers: replayed ones it does not, and which were cut off nobody knows."""
    return sampler.get("kind") != "replay"


def method(sampler: Mapping[str, Any]) -> str:
    """A sampler in a few words, the same wherever its result appears."""
    match sampler.get("kind"):
        case "power":
            return f"power ({', '.join(power_settings(sampler))})"
        case "paper":
            return f"paper (alpha {sampler['alpha']:g}, biased, for comparison only)"
        case "temperature":
            top_k = sampler.get("top_k")
            return f"temperature {sampler['temperature']:g}{f', top {top_k}' if top_k else ''}"
        case "best_of":
            return f"best of {sampler['num_candidates']} by log p (alpha {sampler['alpha']:g})"
        case "majority":
            return f"majority of {sampler['num_candidates']} (temperature {sampler['temperature']:g})"
        case "snis":
            return f"SNIS of {sampler['num_candidates']} (alpha {sampler['alpha']:g})"
        case "smc":
            return f"SMC of {sampler['num_candidates']} (alpha {sampler['alpha']:g})"
        case "replay":
            return f"replay of {PurePath(sampler['texts']).name}"
        case kind:
            return str(kind or "unknown method")


def power_settings(sampler: Mapping[str, Any]) -> list[str]:
    """Alpha and moves of a chain, and what departs from the plain kernel."""
    effective, blocks = sampler.get("num_effective_moves"), sampler.get("blocks", 1)
    said = [f"alpha {sampler['alpha']:g}"]
    said.append(f"{sampler['num_moves']} moves" if effective is None else f"{effective} effective moves")
    if blocks > 1:
        said.append(f"{blocks} blocks")
    if sampler.get("cuts", "uniform") != "uniform":
        said.append(f"{sampler['cuts']} cuts")
    return said


def cut_limit(identity: Mapping[str, Any]) -> float:
    """Tokens below which no answer of a run counts as cut off; see `truncated`."""
    if not has_limit(identity["sampler"]):
        return inf
    return identity["max_new_tokens"] if identity["sampler"].get("kind") == "paper" else 0


def truncated(record: Record, limit: float) -> bool:
    """Whether a limit cut the answer off, at `limit` tokens or more: `paper` may end answers at their last length."""
    return record.ended == "length" and record.tokens["answer"] >= limit


def time_spent(done: Sequence[Record], telemetry: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds of the run's phases over all its starts, and of single answers from submission to record.

    Without telemetry the sampling time is that in which any answer was in flight, and the other phases are None.
    """
    seconds: dict[str, Any] = phase_timings(telemetry)
    if not seconds["sampling_seconds"]:
        seconds = dict.fromkeys(seconds) | {"sampling_seconds": busy_seconds(done), "num_starts": seconds["num_starts"]}
    each = [record.timings["wall_seconds"] for record in done if "wall_seconds" in record.timings]
    quantiles = [float(value) for value in np.quantile(each, [0.5, 0.95, 1.0])] if each else [None] * 3
    names = ("p50", "p95", "max")
    return {**seconds, "answer_seconds": {"mean": average(each), **dict(zip(names, quantiles, strict=True))}}


def busy_seconds(done: Iterable[Record]) -> float | None:
    """Length of the union of the records' [start, end]: a pause between two starts of a run does not count."""
    spans = sorted((record.timings["start"], record.timings["end"]) for record in done if "end" in record.timings)
    if not spans:
        return None
    total, until = 0.0, spans[0][0]
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def token_counts(done: Sequence[Record]) -> dict[str, Any]:
    """Sums over all records, means per answer, and the cost of a problem with all its recorded samples."""
    names = ("prompt", "answer", "generated", "prefilled")
    sums = {name: sum(record.tokens.get(name, 0) for record in done) for name in names}
    means = {f"mean_{name}": ratio(total, len(done)) for name, total in sums.items()}
    num_problems = len({record.problem_id for record in done})
    return {**sums, **means, "generated_per_problem": ratio(sums["generated"], num_problems)}


def memory_peaks(done: Iterable[Record], telemetry: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Largest memory of each worker in bytes: the device's where there is one, else the process's resident set."""
    samples = [row for row in telemetry if row.get("kind") == "sample"]
    peaks: dict[str, int] = {}
    kinds: set[str] = set()
    readings = [(worker_name(row, row.get("worker")), row.get("memory", {})) for row in samples]
    readings += [(worker_name(record.worker, record.worker.get("name")), record.memory) for record in done]
    for worker, reading in readings:
        on_device = reading.get("peak_bytes") is not None
        peak = reading.get("peak_bytes" if on_device else "peak_rss_bytes")
        if peak is not None:
            peaks[worker] = max(peaks.get(worker, 0), peak)
            kinds.add("device" if on_device else "rss")
    slots = [row["slots"] for row in samples if "slots" in row]
    return {
        "peak_bytes": dict(sorted(peaks.items())),
        "largest_peak_bytes": max(peaks.values(), default=None),
        "kind": kinds.pop() if len(kinds) == 1 else None,
        "total_bytes": max((reading.get("total_bytes") or 0 for _, reading in readings), default=0) or None,
        "slots": max(slots, default=None),
        "mean_active_slots": mean_active_slots(samples),
    }


def mean_active_slots(samples: Iterable[Mapping[str, Any]]) -> float | None:
    """Slots in use per step of an engine: each draws one token a step, between a process's first and last reading."""
    steps = tokens = 0
    first: dict[Any, Mapping[str, Any]] = {}
    last: dict[Any, Mapping[str, Any]] = {}
    for row in samples:
        if "steps" in row and "generated_tokens" in row:
            process = row.get("worker"), row.get("pid")
            first.setdefault(process, row)
            last[process] = row
    for process, row in last.items():
        steps += row["steps"] - first[process]["steps"]
        tokens += row["generated_tokens"] - first[process]["generated_tokens"]
    return ratio(tokens, steps)


def worker_name(source: Mapping[str, Any], name: Any) -> str:
    """A worker's rank if it says one, so that its readings and its records count as the same worker's."""
    rank = source.get("rank")
    return str(name if rank is None else rank)


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the figures, as sentences."""
    run, found = summary["run"], []
    if summary["num_owed"]:
        total = summary["num_records"] + summary["num_owed"]
        found.append(
            f"The run is incomplete: {summary['num_records']:,} of {total:,} answers are recorded, so all figures are "
            "provisional; start it again to finish it."
        )
    if failed := summary["num_failed"]:
        shown = ", ".join(str(problem_id) for problem_id, _ in summary["failed"][:10])
        what = (
            "answers failed and count as wrong (problems"
            if failed > 1
            else "answer failed and counts as wrong (problem"
        )
        found.append(f"{failed:,} {what} {shown}{', …' if failed > 10 else ''}); records.jsonl says why.")
    if (share := summary["truncated_rate"]) is not None and share > MAX_QUIET_RATE:
        limit = run["max_new_tokens"]
        found.append(
            f"{100 * share:.1f} % of the answers were cut off at the limit{f' of {limit:,} tokens' if limit else ''}; "
            "a longer task.max_new_tokens would tell whether they are wrong."
        )
    if (share := summary["no_answer_rate"]) is not None and share > MAX_QUIET_RATE:
        found.append(f"In {100 * share:.1f} % of the texts the numeric grader found no answer at all.")
    if undecided := summary["num_undecided"]:
        found.append(
            f"{undecided:,} answers are formulas that the symbolic checker could not decide (not installed, too slow, "
            "or it failed); they count as wrong until `powersample regrade` decides them."
        )
    if changed := summary["num_rescored"]:
        found.append(
            f"The scores are those of a later `powersample regrade` (scores.jsonl), by which {changed:,} answers have "
            "other verdicts than when they were sampled."
        )
    found += chain_warnings(summary["chain"], run["sampler"].get("kind"))
    if damaged := summary["num_damaged_telemetry"]:
        found.append(
            f"{damaged:,} damaged {'lines' if damaged > 1 else 'line'} of telemetry.jsonl could not be read: seconds "
            "and memory may be too low; the scores are not affected."
        )
    return found + few_problems(summary["num_problems"])


def few_problems(number: int) -> list[str]:
    """The warning that figures of so few problems need, if they need it."""
    said = (
        f"Fewer than {FEW_PROBLEMS} problems ({number:,}): the intervals are wide, and small differences mean nothing."
    )
    return [said] if number < FEW_PROBLEMS else []


def rate(flags: Iterable[bool]) -> float | None:
    return average([float(flag) for flag in flags])


def ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
