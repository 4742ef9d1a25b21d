"""The sentences and tables of a run's report, the same in report.md and report.html."""

from __future__ import annotations

from pathlib import PurePath

from evals.grading.grade import score_name
from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.analysis.summary import Estimate, Summary
from orchestrator.report.facts import facts
from orchestrator.report.layout import Table, item, paragraphs
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.settings.config import DEMO
from orchestrator.wording import percent, short


def run_report(summary: Summary, timeline: str | None = None, grader: str = PRIMARY_METRIC) -> str:
    """The report of one run by the score `grader`; `timeline` is the file that shows its workers over time."""
    lines = [*facts(summary), provenance(summary)]
    if timeline:
        lines.append(f"Workers over time (memory, utilisation, slots, events): [{timeline}]({timeline})")
    parts = [
        f"# {title(summary)}",
        paragraphs(headline(summary)),
        "\n".join(item(f"Warning: {sentence}") for sentence in summary.warnings),
        paragraphs(*score_parts(summary, grader)),
        "\n".join(map(item, lines)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def title(summary: Summary) -> str:
    return f"{problems_name(summary.run)}: {model_name(summary.run)}, {summary.run.method}"


def headline(summary: Summary) -> str:
    """The sentence that says how many of how many answers the run has."""
    samples = f", {summary.num_samples} samples each" if summary.num_samples > 1 else ""
    rows, total = summary.run.data_rows, summary.num_problems
    subset = f", a subset of {rows:,}" if rows is not None and rows > total else ""
    wanted = summary.num_records + summary.num_owed
    return f"{summary.num_records:,} of {wanted:,} answers to {total:,} problems{samples}{subset}."


def score_parts(summary: Summary, grader: str) -> list[str | Table]:
    """The scores as tables, and what their columns mean."""
    legend = [f"{words}." for words in agreement(grader, summary)]
    if summary.num_groups:
        legend.append(f"Errors are those of {summary.num_groups:,} groups of problems, which the data names.")
    if summary.chain.expected_correct:
        legend.append(
            "expected: % right ± SE of all answers that the sampler weighted, by weight: candidates and particles by "
            "theirs, of a chain the answers after all its moves, which until it has converged lie nearer to its start."
        )
    return [scores_table(summary, grader), " ".join(legend), *samples_parts(summary, grader)]


def shown_scores(grader: str, *summaries: Summary) -> list[str]:
    """The scores worth a row or a column: where all of them agree on every answer, `grader` alone."""
    if all(summary.num_disagreements == 0 for summary in summaries):
        return [grader]
    return list(dict.fromkeys(name for summary in summaries for name in summary.accuracy))


def agreement(grader: str, *summaries: Summary) -> list[str]:
    """The sentence that the one score shown stands for several; empty if it does not."""
    several = any(len(summary.accuracy) > 1 for summary in summaries)
    words = "The scores strict, flexible and numeric agree on every answer; one stands for all"
    return [words] if several and len(shown_scores(grader, *summaries)) == 1 else []


def scores_table(summary: Summary, grader: str) -> Table:
    names, expected = shown_scores(grader, summary), summary.chain.expected_correct
    scores: dict[str, Estimate] = {}
    for name in names:
        scores[name] = summary.accuracy[name]
        if name in summary.accuracy_as_they_stand:
            shown = f"{score_name(name, summary.run.task)}, cut-off answers as they stand"
            scores[shown] = summary.accuracy_as_they_stand[name]
    rows = []
    for name, score in scores.items():
        interval = f"{score.interval_words}{' %' if score.ci95 else ''}"
        error = "-" if score.without_spread else f"± {percent(score.stderr)}"
        rows.append([score_name(name, summary.run.task), f"{percent(score.mean)} %", error, interval])
        if expected:
            rows[-1].append(expected[name].words if name in expected else "-")
    kinds = " / ".join(dict.fromkeys(summary.accuracy[name].interval.replace("wilson", "Wilson") for name in names))
    return Table(["score", "right", "SE", f"95 % interval ({kinds})", *(["expected"] if expected else [])], rows)


def samples_parts(summary: Summary, grader: str) -> list[str | Table]:
    """pass@k and maj@k of the score, and where its variance comes from; empty for one sample per problem."""
    if grader not in summary.pass_at_k:
        return []
    passes, votes = summary.pass_at_k[grader], summary.maj_at_k[grader]
    shown = score_name(grader, summary.run.task)
    rates = Table(["k", f"pass@k ({shown}, % ± SE)", "maj@k"], [[k, passes[k].words, votes[k].words] for k in votes])
    if (split := summary.variance.get(grader)) is None:
        return [rates]
    *with_k, (_, limit) = split.stderr_with.items()
    errors = ", ".join(f"{percent(error)} with {k}" for k, error in with_k)
    whole = split.questions + split.reruns or 1.0
    return [
        rates,
        f"Of the variance of one answer's score {percent(split.questions / whole)} % lies between problems and "
        f"{percent(split.reruns / whole)} % between answers to the same one. Standard error over new problems: "
        f"{errors} samples each, {percent(limit)} with ever more; over new answers to these problems: "
        f"{percent(split.stderr_reruns)}.",
    ]


def provenance(*summaries: Summary) -> str:
    """The sentence that says where the figures come from; where runs differ, it lists each, in their order."""
    runs = [summary.run for summary in summaries]
    facts = {
        "model": [f"{run.model or 'unknown'}{short(run.model_sha256, ' ({})')}" for run in runs],
        "adapter": [run.adapter for run in runs],
        "data": [f"{run.data or 'unknown'}{short(run.data_sha256, ' (sha256 {})')}" for run in runs],
        "preset": [run.preset_version and f"{run.preset} (version {run.preset_version})" for run in runs],
        "dtype": [run.dtype for run in runs],
        "shots": [run.num_shots for run in runs],
        "limit": [run.max_new_tokens and f"{run.max_new_tokens:,} tokens" for run in runs],
        "seed": [run.seed for run in runs],
        "commit": [short(run.git_commit, "{}, with changes" if run.git_dirty else "{}") or "unknown" for run in runs],
        "fingerprint": [short(run.fingerprint) or "unknown" for run in runs],
    }
    known = {name: dict.fromkeys(value for value in values if value is not None) for name, values in facts.items()}
    texts = [f"{name} {' / '.join(map(str, values))}" for name, values in known.items() if values]
    return f"Provenance: {', '.join(texts)}."


def model_name(run: Manifest) -> str:
    return "embedded model" if run.model == DEMO else PurePath(run.model or "unknown model").name


def problems_name(run: Manifest) -> str:
    """The name of the problems by their data; by the task the embedded ones would pass for GSM8K."""
    return "embedded problems" if run.data == DEMO else PurePath(run.data or "unknown problems").name
