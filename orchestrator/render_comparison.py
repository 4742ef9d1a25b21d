"""The report of several runs on the same problems, as text. Computes nothing, reads no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.compare import Comparison, Pair
from orchestrator.layout import figure, item, table, with_error, without_spread, wrapped
from orchestrator.render import AGREEMENT, model_name, problems_name, provenance, shown_scores
from orchestrator.scores import HEADLINE


def comparison_report(comparison: Comparison, plot: str | None) -> str:
    """The report of several runs on the same problems; `plot` is the name of the figure that lies beside it."""
    summaries = [run.summary for _, run in comparison.runs]
    models = " / ".join(dict.fromkeys(model_name(summary["run"]) for summary in summaries))
    parts = [
        f"# {problems_name(summaries[0]['run'])}, {models}: {len(summaries)} methods on {comparison.num_common:,} "
        "common problems",
        "\n".join(
            item(f"Warning ({'all runs' if len(labels) == len(summaries) else '; '.join(labels)}): {sentence}")
            for sentence, labels in shared_warnings(comparison).items()
        ),
        methods_table(comparison),
        wrapped(methods_legend(summaries)),
        *against_baseline(comparison),
        *against_others(comparison),
        wrapped(pairs_legend(comparison)),
        f"![Scores against tokens and settings]({plot})" if plot else "",
        item(provenance(*summaries)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def shared_warnings(comparison: Comparison) -> dict[str, list[str]]:
    """Each warning once, with the runs that it is about."""
    found: dict[str, list[str]] = {}
    for label, run in comparison.runs:
        for sentence in run.summary["warnings"]:
            found.setdefault(sentence, []).append(label)
    return found


def methods_table(comparison: Comparison) -> str:
    """One row a run."""
    summaries = [run.summary for _, run in comparison.runs]
    names = shown_scores(*summaries)
    expected = any(expected_score(summary) for summary in summaries)
    rows = []
    for label, run in comparison.runs:
        scores = [run.summary["accuracy"].get(name) for name in names]
        scores += [expected_score(run.summary)] if expected else []
        count, spent = run.summary["tokens"], run.summary["timings"]["sampling_seconds"]
        figures = [count["mean_answer"], count["mean_generated"], spent]
        rows.append([label, *("-" if score is None else with_error(score) for score in scores), *map(figure, figures)])
    head = ["method", *names, *(["expected"] if expected else []), "length", "tokens/problem", "run seconds"]
    return table(head, rows)


def expected_score(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return summary["chain"]["expected_correct"].get(HEADLINE)


def methods_legend(summaries: Sequence[Mapping[str, Any]]) -> str:
    """What the columns of `methods_table` mean."""
    said = ["Scores are % right ± standard error, over all problems of each run"]
    if any(without_spread(summary["accuracy"][HEADLINE]) for summary in summaries):
        said[0] += "; the 95 % interval (Wilson) instead where all are right or all are wrong"
    if len(shown_scores(*summaries)) == 1:
        said.append(AGREEMENT)
    if any(expected_score(summary) for summary in summaries):
        said.append("expected: % right of all answers that the sampler weighted, by weight")
    said += [
        "length: tokens of the final answer, mean",
        "tokens/problem: tokens generated to get one answer to a problem, mean",
        "run seconds: wall time of sampling of the whole run, not of a problem",
    ]
    return ". ".join(said) + "."


def against_baseline(comparison: Comparison) -> list[str]:
    """Every run with the baseline."""
    pairs = [pair for pair in comparison.pairs if pair.against == comparison.baseline]
    title = (
        f"Paired differences of the {HEADLINE} score against **{comparison.baseline}**, in points, on the "
        f"{comparison.num_common:,} common problems:"
    )
    return [wrapped(title), pairs_table(comparison, "method", [(pair.label, pair) for pair in pairs])]


def against_others(comparison: Comparison) -> list[str]:
    """Each run of power sampling with the other methods."""
    pairs = [pair for pair in comparison.pairs if pair.against != comparison.baseline]
    parts = []
    for label in dict.fromkeys(pair.label for pair in pairs):
        rows = [(pair.against, pair) for pair in pairs if pair.label == label]
        parts += [wrapped(f"The same of **{label}** against other methods:"), pairs_table(comparison, "against", rows)]
    return parts


def pairs_table(comparison: Comparison, first: str, rows: Sequence[tuple[str, Pair]]) -> str:
    """One row a pair, named in the column `first`."""
    counts, test = (["won", "lost"], "McNemar p") if comparison.single else ([], "sign-flip p")
    return table(
        [first, "difference", "95 % interval", *counts, test, "Holm p"], [[name, *cells(pair)] for name, pair in rows]
    )


def cells(pair: Pair) -> list[str]:
    """A pair's difference with its error, its interval, its counts and its p values."""
    mean, stderr, low, high, n = pair.difference
    interval = f"{points(low)} to {points(high)}" if n > 1 else "unknown"
    error = "" if stderr == 0 else f" ± {100 * stderr:.1f}" if n > 1 else " ± unknown"
    counts = [f"{count:,}" for count in (pair.only_this, pair.only_other) if count is not None]
    return [f"{points(mean)}{error}", interval, *counts, f"{pair.p:.3g}", f"{pair.p_holm:.3g}"]


def points(difference: float) -> str:
    """A signed difference in points, never -0.0."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def pairs_legend(comparison: Comparison) -> str:
    num_pairs = f"all {len(comparison.pairs)} pairs" if len(comparison.pairs) > 1 else "one pair"
    if comparison.single:
        text = "won, lost: problems that only this method, or only the other, has right. McNemar p: the exact test"
    else:
        text = "Differences are of question means. sign-flip p: the permutation test on them"
    return f"{text}; Holm p: adjusted for {num_pairs} of this report."
