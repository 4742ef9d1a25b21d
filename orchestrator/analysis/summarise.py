"""Computes the summary of a run from its records, telemetry and manifest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from math import inf

import numpy as np

from evals.record import Record, TokenCounts
from orchestrator.analysis.accuracy import PRIMARY_METRIC, at_k, estimate, graders, groups_of, is_right, question_means
from orchestrator.analysis.diagnostics import average, chain_statistics
from orchestrator.analysis.summary import AnswerTimes, MemoryPeaks, RunTimes, Summary, Throughput, TokenTotals
from orchestrator.analysis.warnings import warnings
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.reading.telemetry import PhaseTimes, events, timings
from orchestrator.rundir.telemetry_rows import TelemetryRow, WorkerState


def summarise(
    records: Sequence[Record],
    telemetry: Sequence[TelemetryRow],
    run: Manifest,
    num_damaged_telemetry: int = 0,
    num_rescored: int | None = None,
) -> Summary:
    """The summary of a run, of its records as far as it has them, with the warnings that apply."""
    done = [record for record in records if record.status == "ok"]
    failed = sorted(record.key for record in records if record.status == "failed")
    limited = done if run.cut_limit < inf else []
    cut = [record for record in limited if truncated(record, run.cut_limit)]
    whole = [record for record in limited if not truncated(record, run.cut_limit)]
    found = [record.scores[PRIMARY_METRIC].kind for record in done]
    standing = [as_it_stands(record) for record in records]
    groups = groups_of(records)
    passes, majorities, variance = at_k(records, run.num_samples)
    times, tokens = run_times(done, telemetry), token_totals(done)
    summary = Summary(
        run=run,
        num_problems=run.num_problems,
        num_samples=run.num_samples,
        num_records=len(records),
        num_owed=max(0, run.num_problems * run.num_samples - len(records)),
        num_failed=len(failed),
        failed=failed,
        num_groups=len(set(groups.values())) or None,
        accuracy={
            name: estimate(question_means(records, name), run.num_samples == 1, groups) for name in graders(records)
        },
        versions={name: grade.version for record in done for name, grade in record.scores.items()},
        accuracy_as_they_stand={
            name: estimate(question_means(standing, name), run.num_samples == 1, groups)
            for name in graders(records)
            if any(is_right(one, name) != is_right(other, name) for one, other in zip(records, standing, strict=True))
        },
        pass_at_k=passes,
        maj_at_k=majorities,
        variance=variance,
        no_answer_rate=average(kind == "none" for kind in found),
        open_thought_rate=average(kind == "open thought" for kind in found),
        unfinished_rate=average(kind == "unfinished" for kind in found),
        num_undecided=found.count("undecided"),
        num_rescored=num_rescored,
        truncated_rate=ratio(len(cut), len(limited)),
        right_if_truncated=average(is_right(record, PRIMARY_METRIC) for record in cut),
        right_if_finished=average(is_right(record, PRIMARY_METRIC) for record in whole),
        num_disagreements=sum(graders_differ(record) for record in done),
        timings=times,
        tokens=tokens,
        throughput=Throughput(
            ratio(tokens.generated, times.sampling_seconds), ratio(len(done), times.sampling_seconds)
        ),
        chain=chain_statistics(records),
        memory=memory_peaks(done, telemetry),
        num_deaths=len(events(telemetry, "death")),
        num_damaged_telemetry=num_damaged_telemetry,
    )
    return replace(summary, warnings=tuple(warnings(summary)))


def as_it_stands(record: Record) -> Record:
    """The record with the verdicts on what its text says so far, if it was cut off."""
    scores = {
        name: grade if (verdict := grade.correct_as_it_stands) is None else replace(grade, correct=verdict)
        for name, grade in record.scores.items()
    }
    return replace(record, scores=scores)


def truncated(record: Record, limit: float) -> bool:
    """Whether a limit cut the answer off, at `limit` tokens or more (see `Manifest.cut_limit`)."""
    return record.ended == "length" and (record.tokens.answer or 0) >= limit


def graders_differ(record: Record) -> bool:
    return len({grade.correct for grade in record.scores.values()}) > 1


def run_times(done: Sequence[Record], telemetry: Sequence[TelemetryRow]) -> RunTimes:
    """Seconds of the run's phases and of its answers.

    Without telemetry the sampling time is that in which any answer was being sampled, and the other phases are None.
    """
    phases = timings(telemetry)
    if not phases.sampling_seconds:
        phases = PhaseTimes(sampling_seconds=busy_seconds(done), num_starts=phases.num_starts)
    each = [record.timings.wall_seconds for record in done if record.timings.wall_seconds is not None]
    p50, p95, longest = np.quantile(each, [0.5, 0.95, 1.0]).tolist() if each else [None] * 3
    return RunTimes(**vars(phases), answer_seconds=AnswerTimes(average(each), p50, p95, longest))


def busy_seconds(done: Iterable[Record]) -> float | None:
    """Length of the union of the records' [start, end]: a pause between two starts of a run does not count."""
    total, until = 0.0, -inf
    spans = [(one.timings.start or 0.0, one.timings.end) for one in done if one.timings.end is not None]
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total if spans else None


def token_totals(done: Sequence[Record]) -> TokenTotals:
    """Sums over all records, and means per answer."""
    counts = [record.tokens for record in done]
    sums = [sum(getattr(one, field.name) or 0 for one in counts) for field in fields(TokenCounts)]
    return TokenTotals(*sums, *(ratio(number, len(done)) for number in sums))


def memory_peaks(done: Iterable[Record], telemetry: Iterable[TelemetryRow]) -> MemoryPeaks:
    """Largest memory of each worker: the device's where there is one, else the process's resident set.

    A worker is identified by its rank if there is one: its readings and its records then count as one worker's.
    """
    samples = [row for row in telemetry if isinstance(row, WorkerState)]
    readings = [(row.rank, row.worker, row.memory) for row in samples]
    readings += [(record.worker.rank, record.worker.name, record.memory) for record in done]
    peaks: dict[str, int] = {}
    on_device = set[bool]()
    for rank, name, reading in readings:
        peak = reading.peak_rss_bytes if reading.peak_bytes is None else reading.peak_bytes
        if peak is not None:
            worker = str(name if rank is None else rank)
            peaks[worker] = max(peaks.get(worker, 0), peak)
            on_device.add(reading.peak_bytes is not None)
    return MemoryPeaks(
        peak_bytes=dict(sorted(peaks.items())),
        largest_peak_bytes=max(peaks.values(), default=None),
        kind=None if len(on_device) != 1 else "device" if on_device.pop() else "rss",
        total_bytes=max((reading.total_bytes or 0 for *_, reading in readings), default=0) or None,
        slots=max((row.slots for row in samples if row.slots is not None), default=None),
        mean_active_slots=mean_active_slots(samples),
    )


def mean_active_slots(samples: Iterable[WorkerState]) -> float | None:
    """Mean slots in use per engine step (each draws one token a step), from the first to the last row of a process."""
    processes = defaultdict[tuple[str, int | None], list[tuple[int, int]]](list)
    for row in samples:
        if row.steps is not None and row.generated_tokens is not None:
            processes[row.worker, row.pid].append((row.steps, row.generated_tokens))
    steps, tokens = (sum(rows[-1][i] - rows[0][i] for rows in processes.values()) for i in (0, 1))
    return ratio(tokens, steps)


def ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
