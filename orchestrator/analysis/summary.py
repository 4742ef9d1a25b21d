"""The summary of a run, typed; summary.json holds the same figures under the same names.

None is what nothing is known of: no record or no telemetry says it, or an older run.json leaves it out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.reading.telemetry import PhaseTimes
from orchestrator.wording import percent


@dataclass(frozen=True)
class Estimate:
    """Mean of `n` problems' values in [0, 1] with its standard error and its 95 % interval."""

    mean: float | None
    stderr: float | None
    ci95: tuple[float, float] | None
    interval: Literal["wilson", "normal", "t"]
    """What the interval is by."""
    n: int

    @property
    def without_spread(self) -> bool:
        """Whether the standard error would be shown as 0, as if the score were certain."""
        return percent(self.stderr) == percent(0)

    @property
    def interval_words(self) -> str:
        """The 95 % interval, in %."""
        return "{} to {}".format(*map(percent, self.ci95)) if self.ci95 else "unknown"

    @property
    def words(self) -> str:
        """In %: mean ± standard error, or with the 95 % interval where the error would be shown as 0."""
        if self.without_spread and self.ci95:
            return f"{percent(self.mean)} ({self.interval_words})"
        return f"{percent(self.mean)} ± {percent(self.stderr)}"


@dataclass(frozen=True)
class Variance:
    """Variance of one answer's score by its sources, as `statistics.Split` has it, and the errors that follow."""

    questions: float
    reruns: float
    stderr_reruns: float
    n: int
    stderr_with: dict[str, float]
    """Samples of each problem (inf: the limit) -> the standard error over new problems with so many."""


@dataclass(frozen=True)
class AnswerTimes:
    """Seconds of single answers from submission to record."""

    mean: float | None
    p50: float | None
    p95: float | None
    max: float | None


@dataclass(frozen=True, kw_only=True)
class RunTimes(PhaseTimes):
    """Seconds of the run's phases and of its answers."""

    answer_seconds: AnswerTimes


@dataclass(frozen=True)
class TokenTotals:
    """Tokens of all answers, see `TokenCounts`, and their means per answer."""

    prompt: int
    answer: int
    generated: int
    prefilled: int
    mean_prompt: float | None
    mean_answer: float | None
    mean_generated: float | None
    mean_prefilled: float | None


@dataclass(frozen=True)
class Throughput:
    """Of all workers together while the run sampled."""

    tokens_per_second: float | None
    problems_per_second: float | None


@dataclass(frozen=True)
class Rise:
    """Rise of log p over the last third of the moves: its mean over problems, its error, the longest third."""

    mean: float
    stderr: float | None
    moves: int


@dataclass(frozen=True, kw_only=True)
class ChainStatistics:
    """Figures of the chains, pooled over the answers: log p and log Z in nats, lengths in tokens.

    The first eight are sums of what `MoveFigures` has under the same names.
    """

    moves: int | None
    null: int | None
    accepted: int | None
    rejected_early: int | None
    initial_tokens: int | None
    replayed_tokens: int | None
    naive_tokens: int | None
    discarded_tokens: int | None
    acceptance: float | None
    """Of the moves that proposed another answer."""
    null_rate: float | None
    forwards_per_move: float | None
    """Tokens generated after the first answer."""
    naive_per_move: float | None
    """What the kernel without replay and early rejection would have generated."""
    forwards_to_naive: float | None
    mean_log_p_first: float | None
    mean_log_p: float | None
    mean_cut: float | None
    mean_divergence: float | None
    mean_distinct: float | None
    mean_drift: float | None
    mean_candidates: float | None
    mean_particles: float | None
    mean_resampled: float | None
    mean_log_z_hat: float | None
    max_drift: float | None
    ess: float | None
    ess_share: float | None
    """Effective sample size as a share of the candidates or particles."""
    vote_share: float | None
    """Share of the candidates that gave the winning answer, and of those that gave none."""
    silent_share: float | None
    log_z_sum_first_sd: float | None
    log_p_by_move: list[tuple[int, float]]
    log_p_rise: Rise | None
    log_p_autocorrelation: dict[str, float | None]
    """By the number of moves between."""
    expected_correct: dict[str, Estimate]
    ended: dict[str, float]
    """Why an answer ended -> share of the answers."""


@dataclass(frozen=True)
class MemoryPeaks:
    """Largest memory of the workers in bytes, and their slots."""

    peak_bytes: dict[str, int]
    """By worker."""
    largest_peak_bytes: int | None
    kind: Literal["device", "rss"] | None
    """Whether the device's or the process's resident set; None for some of each."""
    total_bytes: int | None
    slots: int | None
    mean_active_slots: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All figures of a run, finished or not.

    A failed record counts as wrong in every score; rates and means are over the records that are not failed.
    """

    run: Manifest
    num_problems: int
    num_samples: int
    num_records: int
    num_owed: int
    num_failed: int
    failed: list[tuple[int, int]]
    """Problem id and sample index of each."""
    num_groups: int | None
    accuracy: dict[str, Estimate]
    """By score; likewise the next five."""
    versions: dict[str, int]
    """Of the graders."""
    accuracy_as_they_stand: dict[str, Estimate]
    """The accuracy if what cut-off answers say so far counted as their answers, of the scores in which that differs."""
    pass_at_k: dict[str, dict[str, Estimate]]
    maj_at_k: dict[str, dict[str, Estimate]]
    variance: dict[str, Variance]
    no_answer_rate: float | None
    open_thought_rate: float | None
    """Of the answers whose thought has no end, and of those cut off before their answer was whole."""
    unfinished_rate: float | None
    num_undecided: int
    num_rescored: int | None
    """Records whose verdicts a regrade has changed; None: there was none."""
    truncated_rate: float | None
    right_if_truncated: float | None
    right_if_finished: float | None
    num_disagreements: int
    timings: RunTimes
    tokens: TokenTotals
    throughput: Throughput
    chain: ChainStatistics
    memory: MemoryPeaks
    num_deaths: int
    """Of workers."""
    num_damaged_telemetry: int
    """Lines that were skipped."""
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The content of summary.json."""
        return asdict(self) | {"run": self.run.model_dump()}
