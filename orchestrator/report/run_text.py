"""The sentences and tables of a run's report, the same in report.md and report.html."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.report.layout import Table, item, paragraphs
from orchestrator.settings.config import DEMO
from orchestrator.wording import duration, figure, fill_in, gib, percent, short, with_error, without_spread

Summary = Mapping[str, Any]

FACTS = (
    "Answers: |no answer {no_answer_rate:percent} %, |truncated {truncated_rate:percent} %, |failed {num_failed:,}"
    "|; the scores disagree on {num_disagreements:,>0}|. {headline} score of truncated answers "
    "{right_if_truncated:percent} %|, of finished ones {finished:percent} %|.| {regraded}",
    "Tokens: {tokens[generated]:,} generated, {tokens[prefilled]:,} prefilled|; per answer "
    "{tokens[mean_prompt]:figure} of prompt, {tokens[mean_answer]:figure} of answer, "
    "{tokens[mean_generated]:figure} generated|.",
    "Time: {phases}|; per answer {each[mean]:duration} on average, {each[p50]:duration} median, {each[p95]:duration} "
    "for 95 %, {each[max]:duration} at most|. Throughput: {throughput[tokens_per_second]:figure} tokens/s, "
    "{throughput[problems_per_second]:figure} answers/s|.",
    "Chain: {chain[moves]:,>0} moves|, {chain[null_rate]:percent} % of them null (they proposed the answer they "
    "started from)|; acceptance {chain[acceptance]:percent} % of the others|; {chain[forwards_per_move]:figure} "
    "tokens generated per move|, by the kernel without replay and early rejection "
    "{least}{chain[naive_per_move]:figure}| ({most}{chain[forwards_to_naive]:percent} % of that)|; cut at "
    "{chain[mean_cut]:percent} % of the answer on average|, first difference at {chain[mean_divergence]:percent} %|; "
    "{chain[mean_distinct]:figure} distinct answers visited per chain|.",
    "Saved: {chain[replayed_tokens]:,} tokens by replay|, the ends of {chain[rejected_early]:,>0} drafts by early "
    "rejection|. Drawn ahead and thrown away: {chain[discarded_tokens]:,>0} tokens|.",
    "Mean log p of the answers: {chain[mean_log_p]:figure}|, at the start {chain[mean_log_p_first]:figure}|; after "
    "move {curve}|; change over the last {rise[moves]} moves {rise[mean]:+.2f}| ± {rise[stderr]:.2f}|; "
    "autocorrelation {lags}, which so few moves bias downwards|; sum of log Z of a problem's first answers varies by "
    "{chain[log_z_sum_first_sd]:figure} (SD)|.",
    "Weights: {weighted} per answer|, effective sample size {chain[ess]:figure}| ({chain[ess_share]:percent} %)"
    "|, resampled {chain[mean_resampled]:figure} times|; estimated log of the sum of p^alpha "
    "{chain[mean_log_z_hat]:figure}|; {chain[vote_share]:percent} % of them gave the winning answer, "
    "{chain[silent_share]:percent} % none|.",
    "Ended: {endings}.",
    "Drift of recomputed against stored log probabilities: at most {chain[max_drift]:.2g} nats"
    "|, {chain[mean_drift]:.2g} on average|.",
    "Memory: at most {memory[largest_peak_bytes]:gib}| of {memory[total_bytes]:gib}|{kind} per worker, {workers}"
    "| (peaks {peaks})|; {memory[slots]} slots each|, {memory[mean_active_slots]:figure} in use on average|.",
    "Workers lost and replaced: {num_deaths:,>0}; what they were answering was asked again.",
)
"""The sentences of a report as `wording.Phrases` reads them; `figures_of` gives their figures."""
SHOWN_MOVES = (0, 1, 2, 5, 10, 20, 40, 100, 200, 400, 1000)
ENDINGS = {"eos": "EOS", "stop": "a stop string", "length": "the token limit"}
PHASES = {"setup": "set-up", "ray": "Ray", "load": "load", "sampling": "sampling"}
INTERVALS = {"wilson": "Wilson", "normal": "normal", "t": "t"}


def run_report(summary: Summary, timeline: str | None = None) -> str:
    """The report of one run; `timeline` is the file that shows its workers over time."""
    lines = [*facts(summary), provenance(summary)]
    if timeline:
        lines.append(f"Workers over time (memory, utilisation, slots, events): [{timeline}]({timeline})")
    parts = [
        f"# {title(summary)}",
        paragraphs(headline(summary)),
        "\n".join(item(f"Warning: {sentence}") for sentence in summary["warnings"]),
        paragraphs(*score_parts(summary)),
        "\n".join(map(item, lines)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def title(summary: Summary) -> str:
    run = summary["run"]
    return f"{problems_name(run)}: {model_name(run)}, {run['method']}"


def headline(summary: Summary) -> str:
    """The sentence that says how many of how many answers the run has."""
    samples = f", {summary['num_samples']} samples each" if summary["num_samples"] > 1 else ""
    rows, total = summary["run"]["data_rows"], summary["num_problems"]
    subset = f", a subset of {rows:,}" if rows is not None and rows > total else ""
    wanted = summary["num_records"] + summary["num_owed"]
    return f"{summary['num_records']:,} of {wanted:,} answers to {total:,} problems{samples}{subset}."


def facts(summary: Summary) -> list[str]:
    """Sentences on answers, tokens, time, chains and memory, as far as anything is known of them."""
    figures = figures_of(summary)
    return [sentence for fact in FACTS if (sentence := fill_in(fact, figures))]


def figures_of(summary: Summary) -> dict[str, Any]:
    """The figures that FACTS name: those of the summary, and those put into words here; None: nothing to say."""
    chain, spent, used = summary["chain"], summary["timings"], summary["memory"]
    lags, curve = chain["log_p_autocorrelation"], chain["log_p_by_move"]
    phases = listed(
        f"{name} {duration(spent[f'{key}_seconds'])}" for key, name in PHASES.items() if spent[f"{key}_seconds"]
    )
    total = f"{duration(spent['total_seconds'])} in all ({phases})" if spent["total_seconds"] else phases or "unknown"
    peaks, kinds = list(used["peak_bytes"].values()), ("candidates", "particles")
    return {
        **summary,
        "headline": PRIMARY_METRIC.capitalize(),
        "finished": summary["right_if_finished"] if summary["truncated_rate"] else None,
        "regraded": "A later `powersample regrade` has changed no verdict." if summary["num_rescored"] == 0 else None,
        "phases": total + (f" over {spent['num_starts']} starts" if spent["num_starts"] > 1 else ""),
        "each": spent["answer_seconds"],
        "least": "at least " if chain["rejected_early"] else "",
        "most": "at most " if chain["rejected_early"] else "",
        "curve": listed(f"{i}: {figure(value)}" for i, value in curve if i in SHOWN_MOVES or i == curve[-1][0]),
        "rise": chain["log_p_rise"],
        "lags": listed(f"{value:.2f} (lag {lag})" for lag, value in lags.items() if value is not None),
        "weighted": listed(f"{figure(chain[f'mean_{what}'])} {what}" for what in kinds if chain[f"mean_{what}"]),
        "endings": listed(f"{percent(share)} % by {ENDINGS[how]}" for how, share in chain["ended"].items() if share),
        "kind": {"device": " of device memory", "rss": " of host memory", None: ""}[used["kind"]],
        "workers": f"{len(peaks)} worker{'s' if len(peaks) > 1 else ''}",
        "peaks": listed(map(gib, peaks)) if len(peaks) > 1 else None,
    }


def listed(words: Iterable[str]) -> str | None:
    return ", ".join(words) or None


def score_parts(summary: Summary) -> list[str | Table]:
    """The scores as tables, and what their columns mean."""
    legend = [f"{words}." for words in agreement(summary)]
    if summary["num_groups"]:
        legend.append(f"Errors are those of {summary['num_groups']:,} groups of problems, which the data names.")
    if summary["chain"]["expected_correct"]:
        legend.append(
            "expected: % right ± SE of all answers that the sampler weighted, by weight: candidates and particles by "
            "theirs, of a chain the answers after all its moves, which until it has converged lie nearer to its start."
        )
    return [scores_table(summary), " ".join(legend), *samples_parts(summary)]


def shown_scores(*summaries: Summary) -> list[str]:
    """The scores worth a row or a column: where all of them agree on every answer, the primary metric alone."""
    if all(summary["num_disagreements"] == 0 for summary in summaries):
        return [PRIMARY_METRIC]
    return list(dict.fromkeys(name for summary in summaries for name in summary["accuracy"]))


def agreement(*summaries: Summary) -> list[str]:
    """The sentence that the one score shown stands for several; empty if it does not."""
    several = any(len(summary["accuracy"]) > 1 for summary in summaries)
    words = "The scores strict, flexible and numeric agree on every answer; one stands for all"
    return [words] if several and len(shown_scores(*summaries)) == 1 else []


def scores_table(summary: Summary) -> Table:
    names, expected = shown_scores(summary), summary["chain"]["expected_correct"]
    rows = []
    for name in names:
        score = summary["accuracy"][name]
        interval = "{} to {} %".format(*map(percent, score["ci95"])) if score["ci95"] else "unknown"
        error = "-" if without_spread(score) else f"± {percent(score['stderr'])}"
        rows.append([name, f"{percent(score['mean'])} %", error, interval])
        if expected:
            rows[-1].append(with_error(expected[name]) if name in expected else "-")
    kinds = " / ".join(dict.fromkeys(INTERVALS[summary["accuracy"][name]["interval"]] for name in names))
    return Table(["score", "right", "SE", f"95 % interval ({kinds})", *(["expected"] if expected else [])], rows)


def samples_parts(summary: Summary) -> list[str | Table]:
    """pass@k and maj@k of the primary metric, and where its variance comes from; empty for one sample per problem."""
    if PRIMARY_METRIC not in summary["pass_at_k"]:
        return []
    passes, votes = summary["pass_at_k"][PRIMARY_METRIC], summary["maj_at_k"][PRIMARY_METRIC]
    rows = [[k, with_error(passes[k]), with_error(votes[k])] for k in votes]
    rates = Table(["k", f"pass@k ({PRIMARY_METRIC}, % ± SE)", "maj@k"], rows)
    if (split := summary["variance"].get(PRIMARY_METRIC)) is None:
        return [rates]
    *with_k, (_, limit) = split["stderr_with"].items()
    errors = ", ".join(f"{percent(error)} with {k}" for k, error in with_k)
    whole = split["questions"] + split["reruns"] or 1.0
    return [
        rates,
        f"Of the variance of one answer's score {percent(split['questions'] / whole)} % lies between problems and "
        f"{percent(split['reruns'] / whole)} % between answers to the same one. Standard error over new problems: "
        f"{errors} samples each, {percent(limit)} with ever more; over new answers to these problems: "
        f"{percent(split['stderr_reruns'])}.",
    ]


def provenance(*summaries: Summary) -> str:
    """The sentence that says where the figures come from; where runs differ, it lists each, in their order."""
    runs = [summary["run"] for summary in summaries]
    facts = {
        "model": [f"{run['model'] or 'unknown'}{short(run['model_sha256'], ' ({})')}" for run in runs],
        "data": [f"{run['data'] or 'unknown'}{short(run['data_sha256'], ' (sha256 {})')}" for run in runs],
        "dtype": [run["dtype"] for run in runs],
        "shots": [run["num_shots"] for run in runs],
        "limit": [run["max_new_tokens"] and f"{run['max_new_tokens']:,} tokens" for run in runs],
        "seed": [run["seed"] for run in runs],
        "commit": [
            short(run["git_commit"], "{}, with changes" if run["git_dirty"] else "{}") or "unknown" for run in runs
        ],
        "fingerprint": [short(run["fingerprint"]) or "unknown" for run in runs],
    }
    known = {name: dict.fromkeys(value for value in values if value is not None) for name, values in facts.items()}
    texts = [f"{name} {' / '.join(map(str, values))}" for name, values in known.items() if values]
    return f"Provenance: {', '.join(texts)}."


def model_name(run: Mapping[str, Any]) -> str:
    return "embedded model" if run["model"] == DEMO else PurePath(run["model"] or "unknown model").name


def problems_name(run: Mapping[str, Any]) -> str:
    """The name of the problems by their data; by the task the embedded ones would pass for GSM8K."""
    return "embedded problems" if run["data"] == DEMO else PurePath(run["data"] or "unknown problems").name
