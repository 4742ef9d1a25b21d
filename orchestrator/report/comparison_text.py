"""The text of the report that compares several runs on the same problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan
from textwrap import fill, indent

from evals.grading.grade import score_name
from orchestrator.analysis.comparison import Comparison, Pair, flips
from orchestrator.analysis.warnings import few
from orchestrator.report.layout import WIDTH, Table, item, paragraphs
from orchestrator.report.run_text import agreement, model_name, problems_name, provenance, shown_scores
from orchestrator.wording import figure, percent

WIDEST = 24
"""Most characters of an answer in a table."""
ENDING = 200
"""Most characters shown of the end of a text, where an answer mostly is."""


def comparison_report(comparison: Comparison, plot: str | None) -> str:
    """The comparison report as Markdown; `plot` is the name of the figure's file beside it."""
    summaries = [run.summary for run in comparison.runs]
    warned = [
        item(f"Warning ({'all runs' if len(labels) == len(summaries) else '; '.join(labels)}): {sentence}")
        for sentence, labels in shared_warnings(comparison).items()
    ]
    parts = [
        f"# {comparison_title(comparison)}",
        "\n".join(warned),
        paragraphs(*comparison_parts(comparison)),
        f"![Scores against tokens and settings]({plot})" if plot else "",
        item(provenance(*summaries)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def comparison_title(comparison: Comparison) -> str:
    summaries = [run.summary for run in comparison.runs]
    models = " / ".join(dict.fromkeys(model_name(summary.run) for summary in summaries))
    name = problems_name(summaries[0].run)
    return f"{name}, {models}: {len(summaries)} methods on {len(comparison.common):,} common problems"


def comparison_parts(comparison: Comparison) -> list[str | Table]:
    """The methods' scores and their paired differences as tables, and what the columns mean."""
    score = score_name(comparison.grader, comparison.runs[0].manifest.task)
    parts = [
        *methods_parts(comparison),
        f"Paired differences of the {score} score against **{comparison.baseline}**, in points, on the "
        f"{len(comparison.common):,} common problems:",
        pairs_table(comparison, "method", {p.run: p for p in comparison.pairs if p.against == comparison.baseline}),
    ]
    others = [pair for pair in comparison.pairs if pair.against != comparison.baseline]
    for label in dict.fromkeys(pair.run for pair in others):
        rows = {pair.against: pair for pair in others if pair.run == label}
        parts += [f"The same of **{label}** against other methods:", pairs_table(comparison, "against", rows)]
    return [*parts, pairs_legend(comparison)]


def shared_warnings(comparison: Comparison) -> dict[str, list[str]]:
    """Warning -> labels of the runs that it is about."""
    of_all = [*few(len(comparison.common))]
    if comparison.asked:
        differing = ", ".join(comparison.asked)
        of_all.append(f"The runs asked differently ({differing}), and part of a difference may come from that.")
    labels = {sentence: [run.label for run in comparison.runs] for sentence in of_all}
    for run in comparison.runs:
        for sentence in run.summary.warnings:
            if sentence not in few(run.summary.num_problems):  # here the number of common problems counts
                labels.setdefault(sentence, []).append(run.label)
    return labels


def methods_parts(comparison: Comparison) -> list[str | Table]:
    """A table with one row a run, of its answers to the common problems, and what its columns mean."""
    runs, summaries, grader = comparison.runs, comparison.summaries, comparison.grader
    names = shown_scores(grader, *summaries)
    weighted = [summary.chain.expected_correct.get(grader) for summary in summaries]
    rows = []
    for run, summary, expected in zip(runs, summaries, weighted, strict=True):
        scores = [*(summary.accuracy.get(name) for name in names), *([expected] if any(weighted) else [])]
        spent = summary.tokens.mean_answer, summary.tokens.mean_generated, run.summary.timings.sampling_seconds
        rows.append([run.label, *("-" if score is None else score.words for score in scores), *map(figure, spent)])
    legend = [f"Scores are % right ± standard error, over the {len(comparison.common):,} common problems"]
    if any(summary.accuracy[grader].without_spread for summary in summaries):
        legend[0] += "; the 95 % interval (Wilson) instead where all are right or all are wrong"
    legend += agreement(grader, *summaries)
    if any(weighted):
        legend.append("expected: % right of all answers that the sampler weighted, by weight")
    legend += [
        "length: tokens of the final answer, mean",
        "tokens/problem: tokens generated to get one answer to a problem, mean",
        "run seconds: wall time of sampling of the whole run, not of a problem.",
    ]
    shown = [score_name(name, summaries[0].run.task) for name in names]
    head = ["method", *shown, *(["expected"] if any(weighted) else []), "length", "tokens/problem", "run seconds"]
    return [Table(head, rows), ". ".join(legend)]


def pairs_table(comparison: Comparison, first: str, pairs: Mapping[str, Pair]) -> Table:
    """One row a pair, named in the column `first`: its difference, what it could detect, its counts and p values."""
    counts = ["won", "lost"] if comparison.single else []
    rows = []
    for name, pair in pairs.items():
        mean, stderr, low, high, n = pair.difference
        error = "" if stderr == 0 else f" ± {100 * stderr:.1f}" if n > 1 else " ± unknown"
        rows.append(
            [
                name,
                f"{points(mean)}{error}",
                f"{points(low)} to {points(high)}" if n > 1 else "unknown",
                "-" if isnan(pair.difference.mde) else percent(pair.difference.mde),
                *(f"{count:,}" for count in (pair.won, pair.lost) if count is not None),
                *(f"{p:.3g}" if p >= 1e-4 else f"{p:.0e}" for p in (pair.p, pair.p_holm)),
            ]
        )
    return Table([first, "difference", "95 % interval", "MDE", *counts, "p", "Holm p"], rows)


def points(difference: float) -> str:
    """A signed difference in points, never -0.0."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def flips_text(comparison: Comparison, limit: int, whole: bool) -> str:
    """Up to `limit` problems on which the runs disagree: a table of what each answered, then what each wrote.

    The texts are all if `whole`, else of each run the end of the first with its most frequent answer.
    """
    flipped = flips(comparison)
    if not flipped:
        return "The runs have the same problems right.\n"
    names = [f"run {i}" for i in range(1, len(comparison.runs) + 1)]
    said = f"Flipped problems, which the runs do not have right equally often: {len(flipped):,}"
    said += f" (--flips {len(flipped)} shows all). " if limit < len(flipped) else ". "
    said += "; ".join(f"{name}: {run.label}" for name, run in zip(names, comparison.runs, strict=True))
    rows = [[str(flip.problem_id), shown(flip.gold), *map(votes, flip.answers)] for flip in flipped[:limit]]
    parts = [paragraphs(said + ".", *([Table(["problem", "gold", *names], rows)] if rows else []))]
    for flip in flipped[:limit]:
        lines = [f"Problem {flip.problem_id}, gold {shown(flip.gold)}"]
        for name, answers, texts in zip(names, flip.answers, flip.texts, strict=True):
            usual = answers.index(max(answers, key=answers.count))
            for k, ((answer, right), text) in enumerate(zip(answers, texts, strict=True)):
                sample = f", sample {k}" if len(answers) > 1 else ""
                said = f"{name}{sample}, {'right' if right else 'wrong'} ({shown(answer)}):"
                if whole:
                    lines += [f"  {said}", indent(harmless(text), "    ")]
                elif k == usual:
                    line = harmless(" ".join(text.split()))
                    line = line if len(line) <= ENDING else f"…{line[-ENDING:]}"
                    lines.append(fill(f"{said} {line}", WIDTH, initial_indent="  ", subsequent_indent="    "))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def votes(answers: Sequence[tuple[str, bool]]) -> str:
    """The answers of one run to a problem, the most frequent first."""
    counts = Counter(shown(answer) for answer, _ in answers)
    return ", ".join(answer if count == 1 else f"{answer} ×{count}" for answer, count in counts.most_common())


def harmless(text: str) -> str:
    """The text with characters that do not print, which a terminal might obey, replaced; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def shown(answer: str) -> str:
    """An answer as a table cell: on one line, cut to WIDEST, without control characters or column marks."""
    text = harmless(" ".join(answer.split()))
    return (text if len(text) <= WIDEST else text[: WIDEST - 1] + "…").replace("|", "\\|")


def pairs_legend(comparison: Comparison) -> str:
    num_pairs = f"all {len(comparison.pairs)} pairs" if len(comparison.pairs) > 1 else "one pair"
    if comparison.single:
        text = "won, lost: problems that only this method, or only the other, has right. p: exact McNemar test"
    else:
        text = "Differences are of question means. p: permutation test on them (sign flips)"
        text += f", by the {comparison.num_groups:,} groups that the data names" if comparison.num_groups else ""
    text += (
        f"; Holm p: adjusted for {num_pairs}. MDE: the true difference that such a pair of runs finds at 5 % "
        "(two-sided) with 80 % power."
    )
    if comparison.grown:
        text += (
            f" Problems were added to {', '.join(comparison.grown)} after answers had been seen: p and the intervals "
            "hold for a number of problems that was set beforehand."
        )
    return text
