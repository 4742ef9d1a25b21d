"""The sentences of a report on answers, tokens, time, chains and memory, each a function of the summary.

A figure of which nothing is known is not mentioned, and a sentence without its first figure is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby

from evals.grading.grade import score_name
from evals.sizing.slots import gib
from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.analysis.summary import Summary
from orchestrator.wording import duration, figure, known, percent, sentence

SHOWN_MOVES = (0, 1, 2, 5, 10, 20, 40, 100, 200, 400, 1000)
ENDINGS = {"eos": "EOS", "stop": "a stop string", "length": "the token limit"}


def answers(summary: Summary) -> str | None:
    finished = summary.right_if_finished if summary.truncated_rate else None
    right = f". {score_name(PRIMARY_METRIC, summary.run.task).capitalize()} score of truncated answers {{}} %"
    return sentence(
        "Answers: ",
        known("no answer {} %, ", summary.no_answer_rate, percent),
        known("open thought {} %, ", summary.open_thought_rate or None, percent),
        known("unfinished {} %, ", summary.unfinished_rate or None, percent),
        known("truncated {} %, ", summary.truncated_rate, percent),
        f"failed {summary.num_failed:,}",
        known("; the scores disagree on {:,}", summary.num_disagreements or None),
        known(right, summary.right_if_truncated, percent),
        known(", of finished ones {} %", finished, percent),
        ". A later `powersample regrade` has changed no verdict" if summary.num_rescored == 0 else None,
    )


def tokens(summary: Summary) -> str | None:
    spent = summary.tokens
    return sentence(
        f"Tokens: {spent.generated:,} generated, {spent.prefilled:,} prefilled",
        known("; per answer {} of prompt, ", spent.mean_prompt, figure),
        known("{} of answer, ", spent.mean_answer, figure),
        known("{} generated", spent.mean_generated, figure),
    )


def time(summary: Summary) -> str | None:
    spent, each, rate = summary.timings, summary.timings.answer_seconds, summary.throughput
    parts = {
        **{"set-up": spent.setup_seconds, "Ray": spent.ray_seconds},
        **{"load": spent.load_seconds, "sampling": spent.sampling_seconds},
    }
    phases = listed(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    total = f"{duration(spent.total_seconds)} in all ({phases})" if spent.total_seconds else phases or "unknown"
    return sentence(
        f"Time: {total}",
        f" over {spent.num_starts} starts" if spent.num_starts > 1 else None,
        known("; per answer {} on average", each.mean, duration),
        known(", {} median", each.p50, duration),
        known(", {} for 95 %", each.p95, duration),
        known(", {} at most", each.max, duration),
        known(". Throughput: {} tokens/s", rate.tokens_per_second, figure),
        known(", {} answers/s", rate.problems_per_second, figure),
    )


def chain(summary: Summary) -> str | None:
    of = summary.chain
    least, most = ("at least ", "at most ") if of.rejected_early else ("", "")
    return sentence(
        known("Chain: {:,} moves", of.moves or None),
        known(", {} % of them null (they proposed the answer they started from)", of.null_rate, percent),
        known("; acceptance {} % of the others", of.acceptance, percent),
        known("; {} tokens generated per move", of.forwards_per_move, figure),
        known(f", by the kernel without replay and early rejection {least}{{}}", of.naive_per_move, figure),
        known(f" ({most}{{}} % of that)", of.forwards_to_naive, percent),
        known("; cut at {} % of the answer on average", of.mean_cut, percent),
        known(", first difference at {} %", of.mean_divergence, percent),
        known("; {} distinct answers visited per chain", of.mean_distinct, figure),
    )


def saved(summary: Summary) -> str | None:
    return sentence(
        known("Saved: {:,} tokens by replay", summary.chain.replayed_tokens),
        known(", the ends of {:,} proposals by early rejection", summary.chain.rejected_early or None),
        known(". Drawn ahead and thrown away: {:,} tokens", summary.chain.discarded_tokens or None),
    )


def log_p(summary: Summary) -> str | None:
    of, curve, rise = summary.chain, summary.chain.log_p_by_move, summary.chain.log_p_rise
    moves = listed(f"{move}: {figure(mean)}" for move, mean in curve if move in SHOWN_MOVES or move == curve[-1][0])
    lags = listed(f"{value:.2f} (lag {lag})" for lag, value in of.log_p_autocorrelation.items() if value is not None)
    return sentence(
        known("Mean log p of the answers: {}", of.mean_log_p, figure),
        known(", at the start {}", of.mean_log_p_first, figure),
        known("; after move {}", moves),
        rise and f"; change over the last {rise.moves} moves {rise.mean:+.2f}",
        rise and known(" ± {:.2f}", rise.stderr),
        known("; autocorrelation {}, which so few moves bias downwards", lags),
        known("; sum of log Z of a problem's first answers varies by {} (SD)", of.log_z_sum_first_sd, figure),
    )


def weights(summary: Summary) -> str | None:
    of = summary.chain
    pools = {"candidates": of.mean_candidates, "particles": of.mean_particles}
    return sentence(
        known("Weights: {} per answer", listed(f"{figure(mean)} {name}" for name, mean in pools.items() if mean)),
        known(", effective sample size {}", of.ess, figure),
        known(" ({} %)", of.ess_share, percent),
        known(", resampled {} times", of.mean_resampled, figure),
        known("; estimated log of the sum of p^alpha {}", of.mean_log_z_hat, figure),
        known("; {} % of them gave the winning answer", of.vote_share, percent),
        known(", {} % none", of.silent_share, percent),
    )


def ended(summary: Summary) -> str | None:
    shares = summary.chain.ended.items()
    return sentence(
        known("Ended: {}", listed(f"{percent(share)} % by {ENDINGS[how]}" for how, share in shares if share))
    )


def drift(summary: Summary) -> str | None:
    return sentence(
        known("Drift of recomputed against stored log probabilities: at most {:.2g} nats", summary.chain.max_drift),
        known(", {:.2g} on average", summary.chain.mean_drift),
    )


def memory(summary: Summary) -> str | None:
    used, peaks = summary.memory, list(map(gib, summary.memory.peak_bytes.values()))
    return sentence(
        known("Memory: at most {}", used.largest_peak_bytes, gib),
        known(" of {}", used.total_bytes, gib),
        {"device": " of device memory", "rss": " of host memory", None: ""}[used.kind],
        f" per worker, {len(peaks)} workers (peaks {', '.join(peaks)})" if len(peaks) > 1 else " per worker, 1 worker",
        known("; {} slots each", used.slots),
        known(", {} in use on average", used.mean_active_slots, figure),
    )


def lost_workers(summary: Summary) -> str | None:
    deaths = summary.num_deaths or None
    return sentence(known("Workers lost and replaced: {:,}; what they were answering was asked again", deaths))


def size(summary: Summary) -> str | None:
    """How the run grew, and which part of it the report is of."""
    *before, last = [words for words, _ in groupby(one.words for one in summary.run.extents)] or [""]
    kept = "; the answers to more are kept" if summary.run.is_part else ""
    return sentence(
        known("Size: the run was asked for {}", listed(before)), f" and last for {last}, of which this report is", kept
    )


FACTS: tuple[Callable[[Summary], str | None], ...] = (
    size, answers, tokens, time, chain, saved, log_p, weights, ended, drift, memory, lost_workers,
)  # fmt: skip


def facts(summary: Summary) -> list[str]:
    """The sentences that have something to say."""
    return [text for fact in FACTS if (text := fact(summary))]


def listed(words: Iterable[str]) -> str | None:
    return ", ".join(words) or None
