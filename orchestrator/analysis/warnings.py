"""What a reader of a run's scores has to be warned of."""

from __future__ import annotations

from collections.abc import Iterator

from evals.grading.grade import score_name
from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.analysis.summary import Summary
from orchestrator.wording import percent

MAX_CUT_OFF, MAX_SILENT, MAX_NULL = 0.02, 0.02, 0.95
MIN_ACCEPTANCE, MIN_ESS_SHARE = 0.01, 0.10
FEW_PROBLEMS = 300
SHOWN_IDS = 10


def warnings(summary: Summary) -> Iterator[str]:
    """The warnings that apply to a run, a sentence each."""
    chain, rise, limit = summary.chain, summary.chain.log_p_rise, summary.run.max_new_tokens
    if summary.num_owed:
        yield (
            f"The run is incomplete: {summary.num_records:,} of {summary.num_records + summary.num_owed:,} answers are "
            "recorded, so all figures are provisional; start it again to finish it."
        )
    if summary.run.seen_problems is not None:
        yield (
            f"Problems were added after answers to the first {summary.run.seen_problems:,} had been seen: where those "
            "decided whether to add more, intervals and p values promise too much."
        )
    if summary.failed:
        ids = [str(problem_id) for problem_id, _ in summary.failed]
        shown = ", ".join(ids[:SHOWN_IDS] + ["…"] * (len(ids) > SHOWN_IDS))
        yield f"Answers that failed and count as wrong: {len(ids):,} (problems {shown}); records.jsonl says why."
    if (summary.truncated_rate or 0) > MAX_CUT_OFF:
        yield (
            f"{percent(summary.truncated_rate)} % of the answers were cut off at the limit"
            f"{'' if limit is None else f' of {limit:,} tokens'}; a longer task.max_new_tokens would tell whether they "
            "are wrong."
        )
    if (summary.no_answer_rate or 0) > MAX_SILENT:
        name = score_name(PRIMARY_METRIC, summary.run.task)
        yield f"In {percent(summary.no_answer_rate)} % of the texts the {name} grader found no answer at all."
    if (summary.open_thought_rate or 0) > MAX_SILENT:
        yield (
            f"{percent(summary.open_thought_rate)} % of the answers are thoughts that never end, and count as wrong; a "
            "longer task.max_new_tokens would let them end, or task.thought_end names another token than theirs."
        )
    for name, score in summary.accuracy_as_they_stand.items():
        yield (
            f"The {score_name(name, summary.run.task)} score counts an answer that was cut off only if it was whole by "
            'then (a closed box, or `####` or "the answer is" with a number and something after it); by what stands in '
            f"the cut-off texts it would be {percent(score.mean)} % instead of "
            f"{percent(summary.accuracy[name].mean)} %."
        )
    if summary.num_undecided:
        yield (
            f"{summary.num_undecided:,} answers are formulas that the symbolic checker could not decide (not "
            "installed, too slow, or it failed); they count as wrong until `powersample regrade` decides them."
        )
    if summary.num_rescored:
        yield (
            f"The scores are those of a later `powersample regrade` (scores.jsonl), by which {summary.num_rescored:,} "
            "answers have other verdicts than when they were sampled."
        )
    if summary.run.kind == "paper":
        yield (
            "The rules of paper do not leave p^alpha invariant: its scores are biased, for comparison only. They also "
            "end an answer at the length of the one before."
        )
    if (chain.null_rate or 0) > MAX_NULL:
        yield (
            f"{percent(chain.null_rate)} % of the moves proposed the answer they started from: the chains hardly move; "
            "the model is sure of its answers, or alpha is too large."
        )
    if chain.acceptance is not None and chain.acceptance < MIN_ACCEPTANCE:
        accepted = percent(chain.acceptance)
        yield f"Only {accepted} % of the proposals of another answer were accepted: the chains are stuck."
    if rise is not None and rise.stderr is not None and rise.mean > rise.stderr:
        yield (
            f"Mean log p still rose over the last {rise.moves} moves, by {rise.mean:.2f} ± {rise.stderr:.2f}: the "
            "chains have not converged; more moves would change the scores."
        )
    if chain.ess_share is not None and chain.ess_share < MIN_ESS_SHARE:
        share = percent(chain.ess_share)
        yield f"The effective sample size is {share} % of the candidates: a few of them carry all the weight."
    if summary.num_damaged_telemetry:
        yield (
            f"Lines of telemetry.jsonl that are damaged and could not be read: {summary.num_damaged_telemetry:,}; "
            "seconds and memory may be too low; the scores are not affected."
        )
    yield from few(summary.num_problems)


def few(number: int) -> Iterator[str]:
    """The warning that so many problems are few."""
    if number < FEW_PROBLEMS:
        limit = f"Fewer than {FEW_PROBLEMS} problems ({number:,})"
        yield f"{limit}: the intervals are wide, and small differences mean nothing."
