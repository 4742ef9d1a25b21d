"""Diagnostics of the samplers, pooled over a run's answers: acceptance, tokens per move, log p, weights.

Each sampler puts its figures into a record's `chain`. A figure that no record reports is None here, never 0: "not
reported" and "none" are different findings. Ratios are over the records that report all of their parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from evals.record import Record
from evals.samplers.candidates import CandidateFigures
from evals.samplers.smc import ParticleFigures
from evals.samplers.trace import MoveFigures
from evals.statistics import mean_and_stderr
from evals.types import ChainFigures
from orchestrator.analysis.accuracy import by_problem, expected_correctness, none_if_nan
from orchestrator.analysis.summary import ChainStatistics, Rise

Number = TypeVar("Number", int, float)
LAGS = (1, 2, 5)
MAX_POINTS = 41
"""Points of the mean log p by move in the summary."""


def chain_statistics(records: Sequence[Record]) -> ChainStatistics:
    """The figures of a run's chains."""
    done = [record for record in records if record.status == "ok"]
    figures: list[ChainFigures] = [record.chain for record in done]
    chains = [one for one in figures if isinstance(one, MoveFigures)]
    choices = [one for one in figures if isinstance(one, CandidateFigures)]
    clouds = [one for one in figures if isinstance(one, ParticleFigures)]
    moving = [one for one in chains if one.moves]
    forwards = [difference(one.generated, one.initial_tokens) for one in moving]
    sizes = [(one.ess, one.candidates) for one in choices] + [(one.ess_final, one.particles) for one in clouds]
    elections = [(one.votes, one.candidates) for one in choices if one.votes is not None and one.candidates]
    return ChainStatistics(
        moves=total(one.moves for one in chains),
        null=total(one.null for one in chains),
        accepted=total(one.accepted for one in chains),
        rejected_early=total(one.rejected_early for one in chains),
        initial_tokens=total(one.initial_tokens for one in chains),
        replayed_tokens=total(one.replayed_tokens for one in chains),
        naive_tokens=total(one.naive_tokens for one in chains),
        discarded_tokens=total(one.discarded_tokens for one in chains),
        acceptance=quotient((one.accepted, difference(one.moves, one.null)) for one in moving),
        null_rate=quotient((one.null, one.moves) for one in moving),
        forwards_per_move=quotient((spent, one.moves) for spent, one in zip(forwards, moving, strict=True)),
        naive_per_move=quotient((one.naive_tokens, one.moves) for one in moving),
        forwards_to_naive=quotient((spent, one.naive_tokens) for spent, one in zip(forwards, moving, strict=True)),
        mean_log_p_first=average(one.log_p_first for one in chains),
        mean_log_p=average(one.log_p for one in figures),
        mean_cut=average(one.mean_cut for one in chains),
        mean_divergence=average(one.mean_divergence for one in chains),
        mean_distinct=average(one.distinct for one in [*chains, *clouds]),
        mean_drift=average(one.drift_mean for one in chains),
        mean_candidates=average(one.candidates for one in choices),
        mean_particles=average(one.particles for one in clouds),
        mean_resampled=average(one.resampled for one in clouds),
        mean_log_z_hat=average(one.log_z_hat for one in clouds),
        max_drift=max(reported(one.drift_max for one in chains), default=None),
        ess=average(size for size, _ in sizes),
        ess_share=average(size / count for size, count in sizes if size is not None and count),
        vote_share=average(max(votes.values(), default=0) / count for votes, count in elections),
        silent_share=average(1 - sum(votes.values()) / count for votes, count in elections),
        log_z_sum_first_sd=log_z_sum_first_sd(done),
        log_p_by_move=log_p_by_move(done),
        log_p_rise=log_p_rise(done),
        log_p_autocorrelation=autocorrelation(done),
        expected_correct=expected_correctness(records),
        ended={how: sum(one.ended == how for one in done) / len(done) for how in ("eos", "stop", "length") if done},
    )


def reported(values: Iterable[Number | None]) -> list[Number]:
    return [value for value in values if value is not None]


def total(values: Iterable[int | None]) -> int | None:
    """Sum of the values that are reported; None if none is."""
    return sum(known) if (known := reported(values)) else None


def average(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are reported; None if none is."""
    return sum(known) / len(known) if (known := reported(values)) else None


def difference(whole: int | None, part: int | None) -> int | None:
    return None if whole is None or part is None else whole - part


def quotient(pairs: Iterable[tuple[int | None, int | None]]) -> float | None:
    """Sum of one figure over the sum of another, over the chains that report both; None where the second is 0."""
    both = [(part, whole) for part, whole in pairs if part is not None and whole is not None]
    below = sum(whole for _, whole in both)
    return sum(part for part, _ in both) / below if below else None


def log_z_sum_first_sd(done: Iterable[Record]) -> float | None:
    """Standard deviation of log_z_sum_first over a problem's samples, pooled over problems; None without several."""
    groups = [
        reported(one.chain.log_z_sum_first for one in samples if isinstance(one.chain, MoveFigures))
        for samples in by_problem(done).values()
    ]
    squares = sum(float(np.sum((np.array(group) - np.mean(group)) ** 2)) for group in groups if len(group) > 1)
    freedom = sum(len(group) - 1 for group in groups if len(group) > 1)
    return (squares / freedom) ** 0.5 if freedom else None


def traces(records: Iterable[Record]) -> list[tuple[float, ...]]:
    """log p after every move, from move 0 on, of the chains that moved."""
    known = [one.chain.log_p_trace for one in records if isinstance(one.chain, MoveFigures)]
    return [trace for trace in known if trace is not None and len(trace) > 1]


def log_p_by_move(done: Iterable[Record]) -> list[tuple[int, float]]:
    """[move, mean log p], at most MAX_POINTS of them, over the chains that got that far."""
    chain_traces = traces(done)
    moves = shown_moves(max(map(len, chain_traces), default=0), MAX_POINTS)
    return [(move, float(np.mean([trace[move] for trace in chain_traces if len(trace) > move]))) for move in moves]


def shown_moves(count: int, most: int) -> list[int]:
    """At most `most` of the moves 0 to count - 1, the first and the last among them."""
    return sorted({round(move) for move in np.linspace(0, count - 1, min(count, most))})


def log_p_rise(done: Iterable[Record]) -> Rise | None:
    """Rise of log p over the last third of the moves, with the error of the problems' means; None without moves."""
    groups = [[one for one in traces(samples) if len(one) > 3] for samples in by_problem(done).values()]
    rises = [[trace[-1] - trace[-1 - (len(trace) - 1) // 3] for trace in group] for group in groups if group]
    if not rises:
        return None
    mean, stderr = mean_and_stderr([sum(group) / len(group) for group in rises])
    longest = max(len(trace) for group in groups for trace in group)
    return Rise(mean, none_if_nan(stderr), (longest - 1) // 3)


def autocorrelation(done: Iterable[Record]) -> dict[str, float | None]:
    """Autocorrelation of log p between moves at LAGS, pooled, centred on the mean of each problem.

    Descriptive: the mean is that of the same few moves, which biases it down. None where nothing moved or no chain is
    that long.
    """
    centred: list[np.ndarray] = []
    for samples in by_problem(done).values():
        group = [np.array(trace) for trace in traces(samples)]
        centre = np.mean(np.concatenate(group)) if group else 0.0
        centred += [trace - centre for trace in group]
    moved = bool(centred) and float(np.mean(np.concatenate(centred) ** 2)) > 1e-12  # below that it is rounding
    by_lag: dict[str, float | None] = {}
    for lag in LAGS:
        pairs = [(trace[:-lag], trace[lag:]) for trace in centred if len(trace) > lag]
        earlier, later = (np.concatenate(part) for part in zip(*pairs, strict=True)) if pairs else (np.zeros(1),) * 2
        spread = float(np.sqrt(np.sum(earlier**2) * np.sum(later**2)))  # so that it lies between -1 and 1
        by_lag[str(lag)] = float(np.sum(earlier * later)) / spread if moved and spread > 1e-12 else None
    return by_lag
