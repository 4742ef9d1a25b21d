"""Diagnostics of the samplers, pooled over a run's answers: acceptance, tokens per move, log p, weights.

Each sampler puts its figures into a record's `chain`. A figure that no record reports is None here, never 0: "not
reported" and "none" are different findings. Ratios are over the records that report all of their parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evals.record import Record
from evals.statistics import mean_and_stderr
from orchestrator.analysis.accuracy import by_problem, expected_correctness, none_if_nan
from orchestrator.rundir.schemas import MEANS, TOTALS

Figures = Mapping[str, Any]
RATIOS = {
    "acceptance": ("accepted", "effective"),
    "null_rate": ("null", "moves"),
    "forwards_per_move": ("moved", "moves"),
    "naive_per_move": ("naive_tokens", "moves"),
    "forwards_to_naive": ("moved", "naive_tokens"),
}
"""Sums of fields over sums of others; `effective` moves proposed another answer, `moved` are the tokens generated after
the first answer, `naive_tokens` what the kernel without replay and early rejection would have generated."""
LAGS = (1, 2, 5)
MAX_POINTS = 41
"""Points of the mean log p by move in the summary."""


def chain_statistics(records: Sequence[Record]) -> dict[str, Any]:
    """The `chain` of a summary: its figures by name; log p and log Z in nats, lengths in tokens."""
    done = [record for record in records if record.status == "ok"]
    chains = [record.chain.reported() for record in done]
    moving = [with_differences(chain) for chain in chains if chain.get("moves")]
    sizes = [(one.get("ess", one.get("ess_final")), one.get("candidates", one.get("particles"))) for one in chains]
    elections = [(chain["votes"], chain["candidates"]) for chain in chains if {"votes", "candidates"} <= chain.keys()]
    return {
        **{name: sum(values) if (values := reported(chains, name)) else None for name in TOTALS},
        **{name: quotient(moving, *parts) for name, parts in RATIOS.items()},
        **{name: average(reported(chains, field)) for name, field in MEANS.items()},
        "max_drift": max(reported(chains, "drift_max"), default=None),
        "ess": average([size for size, _ in sizes if size is not None]),
        "ess_share": average([size / count for size, count in sizes if size is not None and count]),
        "vote_share": average([max(votes.values(), default=0) / count for votes, count in elections]),
        "silent_share": average([1 - sum(votes.values()) / count for votes, count in elections]),
        "log_z_sum_first_sd": log_z_sum_first_sd(done),
        "log_p_by_move": log_p_by_move(chains),
        "log_p_rise": log_p_rise(done),
        "log_p_autocorrelation": autocorrelation(done),
        "expected_correct": expected_correctness(records),
        "ended": {how: sum(one.ended == how for one in done) / len(done) for how in ("eos", "stop", "length") if done},
    }


def with_differences(chain: Figures) -> dict[str, Any]:
    """The chain's figures and two more: `effective`, its moves that are not null, and `moved`, the tokens of moves."""
    figures = dict(chain)
    for name, whole, part in (("effective", "moves", "null"), ("moved", "generated", "initial_tokens")):
        if chain.get(whole) is not None and chain.get(part) is not None:
            figures[name] = chain[whole] - chain[part]
    return figures


def reported(chains: Iterable[Figures], name: str) -> list[float]:
    return [chain[name] for chain in chains if chain.get(name) is not None]


def average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def quotient(chains: Iterable[Figures], part: str, whole: str) -> float | None:
    """Sum of one figure over the sum of another, over the chains that report both; None where the second is 0."""
    both = [chain for chain in chains if chain.get(part) is not None and chain.get(whole) is not None]
    below = sum(chain[whole] for chain in both)
    return sum(chain[part] for chain in both) / below if below else None


def log_z_sum_first_sd(done: Iterable[Record]) -> float | None:
    """Standard deviation of log_z_sum_first over a problem's samples, pooled over problems; None without several."""
    groups = [
        reported([record.chain.reported() for record in samples], "log_z_sum_first")
        for samples in by_problem(done).values()
    ]
    squares = sum(float(np.sum((np.array(group) - np.mean(group)) ** 2)) for group in groups if len(group) > 1)
    freedom = sum(len(group) - 1 for group in groups if len(group) > 1)
    return (squares / freedom) ** 0.5 if freedom else None


def traces(chains: Iterable[Figures]) -> list[list[float]]:
    """log p after every move, from move 0 on, of the chains that moved."""
    return [chain["log_p_trace"] for chain in chains if len(chain.get("log_p_trace") or ()) > 1]


def log_p_by_move(chains: Sequence[Figures]) -> list[list[float]]:
    """[move, mean log p], at most MAX_POINTS of them, over the chains that got that far."""
    chain_traces = traces(chains)
    moves = shown_moves(max(map(len, chain_traces), default=0), MAX_POINTS)
    return [[move, float(np.mean([trace[move] for trace in chain_traces if len(trace) > move]))] for move in moves]


def shown_moves(count: int, most: int) -> list[int]:
    """At most `most` of the moves 0 to count - 1, the first and the last among them."""
    return sorted({round(move) for move in np.linspace(0, count - 1, min(count, most))})


def log_p_rise(done: Sequence[Record]) -> dict[str, Any] | None:
    """Mean rise of log p over the last third of the moves, with the error of the problems' means; None without moves.

    `moves` is how many moves the longest third has.
    """
    groups = [traces(record.chain.reported() for record in samples) for samples in by_problem(done).values()]
    groups = [[trace for trace in group if len(trace) > 3] for group in groups]
    rises = [[trace[-1] - trace[-1 - (len(trace) - 1) // 3] for trace in group] for group in groups if group]
    if not rises:
        return None
    mean, stderr = mean_and_stderr([sum(group) / len(group) for group in rises])
    longest = max(len(trace) for group in groups for trace in group)
    return {"mean": mean, "stderr": none_if_nan(stderr), "moves": (longest - 1) // 3}


def autocorrelation(done: Sequence[Record]) -> dict[str, float | None]:
    """Autocorrelation of log p between moves at LAGS, pooled, centred on the mean of each problem.

    Descriptive: the mean is that of the same few moves, which biases it down. None where nothing moved or no chain is
    that long.
    """
    centred: list[np.ndarray] = []
    for samples in by_problem(done).values():
        group = [np.array(trace) for trace in traces(record.chain.reported() for record in samples)]
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
