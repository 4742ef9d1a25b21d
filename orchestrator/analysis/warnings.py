"""The warnings about a run, each a function of its summary: a sentence, or None where there is nothing to warn of."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.analysis.summary import Summary
from orchestrator.wording import percent

MAX_CUT_OFF, MAX_SILENT, MAX_NULL = 0.02, 0.02, 0.95
MIN_ACCEPTANCE, MIN_ESS_SHARE = 0.01, 0.10
FEW_PROBLEMS = 300
SHOWN_IDS = 10


def incomplete(summary: Summary) -> str | None:
    if not summary.num_owed:
        return None
    return (
        f"The run is incomplete: {summary.num_records:,} of {summary.num_records + summary.num_owed:,} answers are "
        "recorded, so all figures are provisional; start it again to finish it."
    )


def failed(summary: Summary) -> str | None:
    if not summary.failed:
        return None
    ids = [str(problem_id) for problem_id, _ in summary.failed]
    shown = ", ".join(ids[:SHOWN_IDS] + ["…"] * (len(ids) > SHOWN_IDS))
    return f"Answers that failed and count as wrong: {len(ids):,} (problems {shown}); records.jsonl says why."


def cut_off(summary: Summary) -> str | None:
    if (summary.truncated_rate or 0) <= MAX_CUT_OFF:
        return None
    limit = "" if summary.run.max_new_tokens is None else f" of {summary.run.max_new_tokens:,} tokens"
    return (
        f"{percent(summary.truncated_rate)} % of the answers were cut off at the limit{limit}; a longer "
        "task.max_new_tokens would tell whether they are wrong."
    )


def silent(summary: Summary) -> str | None:
    if (summary.no_answer_rate or 0) <= MAX_SILENT:
        return None
    return f"In {percent(summary.no_answer_rate)} % of the texts the numeric grader found no answer at all."


def undecided(summary: Summary) -> str | None:
    if not summary.num_undecided:
        return None
    return (
        f"{summary.num_undecided:,} answers are formulas that the symbolic checker could not decide (not installed, "
        "too slow, or it failed); they count as wrong until `powersample regrade` decides them."
    )


def rescored(summary: Summary) -> str | None:
    if not summary.num_rescored:
        return None
    return (
        f"The scores are those of a later `powersample regrade` (scores.jsonl), by which {summary.num_rescored:,} "
        "answers have other verdicts than when they were sampled."
    )


def biased(summary: Summary) -> str | None:
    if summary.run.kind != "paper":
        return None
    return (
        "The rules of paper do not leave p^alpha invariant: its scores are biased, for comparison only. They also end "
        "an answer at the length of the one before."
    )


def hardly_moving(summary: Summary) -> str | None:
    if (summary.chain.null_rate or 0) <= MAX_NULL:
        return None
    return (
        f"{percent(summary.chain.null_rate)} % of the moves proposed the answer they started from: the chains hardly "
        "move; the model is sure of its answers, or alpha is too large."
    )


def stuck(summary: Summary) -> str | None:
    acceptance = summary.chain.acceptance
    if acceptance is None or acceptance >= MIN_ACCEPTANCE:
        return None
    return f"Only {percent(acceptance)} % of the proposals of another answer were accepted: the chains are stuck."


def rising(summary: Summary) -> str | None:
    rise = summary.chain.log_p_rise
    if rise is None or rise.stderr is None or rise.mean <= rise.stderr:
        return None
    return (
        f"Mean log p still rose over the last {rise.moves} moves, by {rise.mean:.2f} ± {rise.stderr:.2f}: the chains "
        "have not converged; more moves would change the scores."
    )


def uneven(summary: Summary) -> str | None:
    share = summary.chain.ess_share
    if share is None or share >= MIN_ESS_SHARE:
        return None
    return f"The effective sample size is {percent(share)} % of the candidates: a few of them carry all the weight."


def damaged(summary: Summary) -> str | None:
    if not summary.num_damaged_telemetry:
        return None
    return (
        f"Lines of telemetry.jsonl that are damaged and could not be read: {summary.num_damaged_telemetry:,}; seconds "
        "and memory may be too low; the scores are not affected."
    )


def few(summary: Summary) -> str | None:
    return few_problems(summary.num_problems)


def few_problems(number: int) -> str | None:
    """The warning that so many problems are few."""
    if number >= FEW_PROBLEMS:
        return None
    return (
        f"Fewer than {FEW_PROBLEMS} problems ({number:,}): the intervals are wide, and small differences mean nothing."
    )


WARNINGS: tuple[Callable[[Summary], str | None], ...] = (
    incomplete, failed, cut_off, silent, undecided, rescored,
    biased, hardly_moving, stuck, rising, uneven, damaged, few,
)  # fmt: skip


def warnings(summary: Summary) -> tuple[str, ...]:
    """The warnings that apply."""
    return tuple(sentence for warning in WARNINGS if (sentence := warning(summary)))
