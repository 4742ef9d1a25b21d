"""Summaries as text that reads well in a terminal of 100 columns and as Markdown. Computes nothing, reads no files."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from orchestrator.compare import Comparison, Pair
from orchestrator.config import DEMO
from orchestrator.reduce import HEADLINE

WIDTH = 100
NO_BREAK = "\u00a0"


def run_report(summary: Mapping[str, Any]) -> str:
    """The report of one run."""
    parts = [f"# {title(summary)}", wrapped(headline(summary))]
    if summary["warnings"]:
        parts.append("\n".join(item(f"Warning: {sentence}") for sentence in summary["warnings"]))
    parts.append(scores(summary))
    lines = [answers(summary), tokens(summary), seconds(summary), chain(summary), memory(summary), provenance(summary)]
    parts.append("\n".join(item(line) for line in lines if line))
    return "\n\n".join(parts) + "\n"


def comparison_report(comparison: Comparison) -> str:
    """The report of several runs on the same problems."""
    runs = [run.summary["run"] for _, run in comparison.runs]
    models = " / ".join(dict.fromkeys(model_name(run) for run in runs))
    parts = [
        f"# {problems_name(runs[0])}, {models}: {len(runs)} methods on {comparison.num_common:,} common problems",
        "\n".join(
            item(f"Warning ({'all runs' if len(labels) == len(comparison.runs) else '; '.join(labels)}): {sentence}")
            for sentence, labels in shared_warnings(comparison).items()
        ),
        methods_table(comparison),
        wrapped(
            "Scores are % right ± standard error, over all problems of each run. answer: tokens of the final answer, "
            "mean; drawn: tokens that were generated to get there, mean; seconds: wall time of sampling."
        ),
        wrapped(
            f"Paired differences of the {HEADLINE} score against **{comparison.baseline}**, in points, on the "
            f"{comparison.num_common:,} common problems:"
        ),
        pairs_table(comparison),
        wrapped(pairs_legend(comparison)),
        item(provenance(*(run.summary for _, run in comparison.runs))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def title(summary: Mapping[str, Any]) -> str:
    run = summary["run"]
    return f"{problems_name(run)}: {model_name(run)}, {run['method']}"


def headline(summary: Mapping[str, Any]) -> str:
    """How many of how many."""
    run = summary["run"]
    samples = f", {summary['num_samples']} samples each" if summary["num_samples"] > 1 else ""
    total = summary["num_problems"]
    rows = run["data_rows"]
    subset = f", a subset of {rows:,}" if rows is not None and rows > total else ""
    wanted = summary["num_records"] + summary["num_owed"]
    return f"{summary['num_records']:,} of {wanted:,} answers to {total:,} problems{samples}{subset}."


def scores(summary: Mapping[str, Any]) -> str:
    """The named scores as a table."""
    rows = []
    for name, score in summary["accuracy"].items():
        low, high = score["ci95"] or (None, None)
        interval = "unknown" if low is None else f"{percent(low)} to {percent(high)} %"
        rows.append([name, f"{percent(score['mean'])} %", f"± {percent(score['stderr'])}", interval])
    kind = {"wilson": "Wilson", "normal": "normal"}[summary["accuracy"][HEADLINE]["interval"]]
    return table(["score", "right", "SE", f"95 % interval ({kind})"], rows)


def answers(summary: Mapping[str, Any]) -> str:
    text = (
        f"Answers: no answer {percent(summary['no_answer_rate'])} %, truncated {percent(summary['truncated_rate'])} %, "
        f"failed {summary['num_failed']:,}; the scores disagree on {summary['num_disagreements']:,}."
    )
    if summary["truncated_rate"]:
        finished, cut = percent(summary["right_if_finished"]), percent(summary["right_if_truncated"])
        each = f"truncated answers {cut} %"
        if summary["right_if_finished"] is not None:
            each = f"finished answers {finished} %, of truncated ones {cut} %"
        text += f" {HEADLINE.capitalize()} score of {each}."
    return text


def tokens(summary: Mapping[str, Any]) -> str:
    count = summary["tokens"]
    return (
        f"Tokens: {count['generated']:,} generated, {count['prefilled']:,} prefilled; per answer "
        f"{figure(count['mean_prompt'])} of prompt, {figure(count['mean_answer'])} of answer, "
        f"{figure(count['mean_generated'])} generated."
    )


def seconds(summary: Mapping[str, Any]) -> str:
    """Wall time by phase, time per answer, throughput."""
    spent, each, speed = summary["timings"], summary["timings"]["answer_seconds"], summary["throughput"]
    phases = ", ".join(
        f"{name} {duration(spent[f'{key}_seconds'])}"
        for key, name in (("setup", "set-up"), ("ray", "Ray"), ("load", "load"), ("sampling", "sampling"))
        if spent[f"{key}_seconds"]
    )
    total = f"{duration(spent['total_seconds'])} in all ({phases})" if spent["total_seconds"] else phases or "unknown"
    starts = f" over {spent['num_starts']} starts" if spent["num_starts"] > 1 else ""
    return (
        f"Time: {total}{starts}; per answer {duration(each['mean'])} on average, {duration(each['p50'])} median, "
        f"{duration(each['p95'])} for 95 %, {duration(each['max'])} at most. "
        f"Throughput: {figure(speed['tokens_per_second'])} tokens/s, {figure(speed['problems_per_second'])} answers/s."
    )


def chain(summary: Mapping[str, Any]) -> str:
    """What the Markov chains did; nothing for samplers without moves."""
    did = summary["chain"]
    if not did["moves"]:
        return f"Mean log p of the answers: {figure(did['mean_log_p'])}." if did["mean_log_p"] is not None else ""
    text = (
        f"Chain: acceptance {percent(did['acceptance'])} % of {did['moves'] - did['null']:,} moves that proposed "
        f"another answer ({did['null']:,} of {did['moves']:,} proposed the same); "
        f"{figure(did['forwards_per_move'])} tokens generated per move"
    )
    if did["rejected_early"]:
        text += f", {did['rejected_early']:,} moves rejected before their end"
    if did["mean_log_p_first"] is not None and did["mean_log_p"] is not None:
        text += f"; mean log p {figure(did['mean_log_p_first'])} at the start, {figure(did['mean_log_p'])} at the end"
    return text + "."


def memory(summary: Mapping[str, Any]) -> str:
    """Peaks per worker and slots."""
    used = summary["memory"]
    if used["largest_peak_bytes"] is None:
        return ""
    where = {"device": " of device memory", "rss": " of host memory", None: ""}[used["kind"]]
    of = f" of {gib(used['total_bytes'])}" if used["total_bytes"] else ""
    peaks = list(used["peak_bytes"].values())
    text = (
        f"Memory: at most {gib(max(peaks))}{of}{where} per worker, {len(peaks)} worker{'s' if len(peaks) > 1 else ''}"
    )
    if len(peaks) > 1:
        text += f" (peaks {', '.join(gib(peak) for peak in peaks)})"
    if used["slots"]:
        busy = used["mean_active_slots"]
        text += f"; {used['slots']} slots each" + (f", {figure(busy)} in use on average" if busy is not None else "")
    return text + "."


def provenance(*summaries: Mapping[str, Any]) -> str:
    """Where the figures come from; where runs differ, what each of them says, in their order."""
    runs = [summary["run"] for summary in summaries]
    facts = {
        "model": [f"{run['model'] or 'unknown'}{short(run['model_sha256'], ' ({})')}" for run in runs],
        "data": [f"{run['data'] or 'unknown'}{short(run['data_sha256'], ' (sha256 {})')}" for run in runs],
        "dtype": [run["dtype"] for run in runs],
        "shots": [run["num_shots"] for run in runs],
        "limit": [run["max_new_tokens"] and f"{run['max_new_tokens']:,} tokens" for run in runs],
        "seed": [run["seed"] for run in runs],
        "commit": [short(run["git_commit"]) or "unknown" for run in runs],
        "fingerprint": [short(run["fingerprint"]) or "unknown" for run in runs],
    }
    known = {name: dict.fromkeys(said for said in all_said if said is not None) for name, all_said in facts.items()}
    return (
        "Provenance: " + ", ".join(f"{name} {' / '.join(map(str, said))}" for name, said in known.items() if said) + "."
    )


def shared_warnings(comparison: Comparison) -> dict[str, list[str]]:
    """Each warning once, with the runs that it is about."""
    found: dict[str, list[str]] = {}
    for label, run in comparison.runs:
        for sentence in run.summary["warnings"]:
            found.setdefault(sentence, []).append(label)
    return found


def methods_table(comparison: Comparison) -> str:
    """One row a run."""
    names = list(comparison.runs[0][1].summary["accuracy"])
    rows = []
    for label, run in comparison.runs:
        summary = run.summary
        cells = [with_error(summary["accuracy"].get(name)) for name in names]
        count, spent = summary["tokens"], summary["timings"]["sampling_seconds"]
        rows.append([label, *cells, figure(count["mean_answer"]), figure(count["mean_generated"]), figure(spent)])
    return table(["method", *names, "answer", "drawn", "seconds"], rows)


def pairs_table(comparison: Comparison) -> str:
    """One row a run against the baseline."""
    return table(
        ["method", "difference", "95 % interval", "won", "lost", "McNemar p", "Holm p"],
        [pair_row(pair) for pair in comparison.pairs],
    )


def pair_row(pair: Pair) -> list[str]:
    mean, stderr, low, high, n = pair.difference
    interval = f"{100 * low:+.1f} to {100 * high:+.1f}" if n > 1 else "unknown"
    error = f"{100 * stderr:.1f}" if n > 1 else "unknown"
    counts = [f"{count:,}" if count is not None else "-" for count in (pair.only_this, pair.only_baseline)]
    tests = [f"{p:.3g}" if p is not None else "-" for p in (pair.p, pair.p_holm)]
    return [pair.label, f"{100 * mean:+.1f} ± {error}", interval, *counts, *tests]


def pairs_legend(comparison: Comparison) -> str:
    if comparison.pairs[0].p is None:
        return "With several samples per problem the differences are of question means, with a normal interval."
    return (
        "won, lost: problems that only this method, or only the baseline, has right. McNemar p: the exact test; Holm "
        "p: adjusted for the number of rows."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first to the left, the others to the right."""
    widths = [max(3, *(len(row[i]) for row in [head, *rows])) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        for row in (head, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def wrapped(text: str, first: str = "", others: str = "") -> str:
    """`text` in lines of at most WIDTH, none of which begins with a unit; `first` and `others` open the lines."""
    glued = re.sub(r"(?<=\d) (?=(?:s|min|h|GiB)\b|%)", NO_BREAK, text)
    filled = textwrap.fill(
        glued, WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return filled.replace(NO_BREAK, " ")


def item(text: str) -> str:
    """A list item of Markdown."""
    return wrapped(text, "- ", "  ")


def with_error(score: Mapping[str, Any] | None) -> str:
    return "-" if score is None else f"{percent(score['mean'])} ± {percent(score['stderr'])}"


def percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f}"


def figure(value: float | None) -> str:
    """A number with three significant digits, whole from 100 on."""
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def duration(value: float | None) -> str:
    """Seconds as a reader says them."""
    if value is None:
        return "unknown"
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def short(digest: str | None, form: str = "{}") -> str:
    """The first eight characters of a hash in `form`; nothing where there is none."""
    return form.format(digest[:8]) if digest else ""


def model_name(run: Mapping[str, Any]) -> str:
    return "embedded model" if run["model"] == DEMO else PurePath(run["model"] or "unknown model").name


def problems_name(run: Mapping[str, Any]) -> str:
    """What was answered; the task alone would let the embedded problems pass for GSM8K."""
    return "embedded problems" if run["data"] == DEMO else PurePath(run["data"] or "unknown problems").name
