"""The report of one run, as text. Computes nothing, reads no files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from orchestrator.config import DEMO
from orchestrator.layout import duration, figure, gib, item, percent, short, table, with_error, without_spread, wrapped
from orchestrator.render_chain import chain_lines
from orchestrator.scores import HEADLINE


def run_report(summary: Mapping[str, Any], timeline: str | None = None) -> str:
    """The report of one run; `timeline` is the file that shows its workers over time."""
    parts = [f"# {title(summary)}", wrapped(headline(summary))]
    if summary["warnings"]:
        parts.append("\n".join(item(f"Warning: {sentence}") for sentence in summary["warnings"]))
    parts += score_parts(summary)
    lines = [*facts(summary), provenance(summary)]
    if timeline:
        lines.append(f"Workers over time (memory, utilisation, slots, events): [{timeline}]({timeline})")
    parts.append("\n".join(item(line) for line in lines if line))
    return "\n\n".join(part for part in parts if part) + "\n"


def title(summary: Mapping[str, Any]) -> str:
    run = summary["run"]
    return f"{problems_name(run)}: {model_name(run)}, {run['method']}"


def score_parts(summary: Mapping[str, Any]) -> list[str]:
    """The scores as tables, and what their columns mean."""
    parts = [scores(summary), wrapped(scores_legend(summary)), samples_table(summary)]
    return [part for part in parts if part]


def facts(summary: Mapping[str, Any]) -> list[str]:
    """Sentences on answers, tokens, time, chains and memory; those that nothing is known of are empty."""
    return [
        answers(summary),
        tokens(summary),
        seconds(summary),
        *chain_lines(summary),
        memory(summary),
        deaths(summary),
    ]


def headline(summary: Mapping[str, Any]) -> str:
    """How many of how many."""
    run = summary["run"]
    samples = f", {summary['num_samples']} samples each" if summary["num_samples"] > 1 else ""
    total = summary["num_problems"]
    rows = run["data_rows"]
    subset = f", a subset of {rows:,}" if rows is not None and rows > total else ""
    wanted = summary["num_records"] + summary["num_owed"]
    return f"{summary['num_records']:,} of {wanted:,} answers to {total:,} problems{samples}{subset}."


def shown_scores(*summaries: Mapping[str, Any]) -> list[str]:
    """The scores worth a row or a column: where all of them agree on every answer, the headline stands for all."""
    if all(summary["num_disagreements"] == 0 for summary in summaries):
        return [HEADLINE]
    return list(dict.fromkeys(name for summary in summaries for name in summary["accuracy"]))


def agreement(*summaries: Mapping[str, Any]) -> list[str]:
    """That the one score shown stands for several, where there are several."""
    several = any(len(summary["accuracy"]) > 1 for summary in summaries)
    words = "The scores strict, flexible and numeric agree on every answer; one stands for all"
    return [words] if several and len(shown_scores(*summaries)) == 1 else []


def scores(summary: Mapping[str, Any]) -> str:
    """The named scores as a table."""
    names = shown_scores(summary)
    expected = summary["chain"]["expected_correct"]
    rows = []
    for name in names:
        score = summary["accuracy"][name]
        low, high = score["ci95"] or (None, None)
        interval = "unknown" if low is None else f"{percent(low)} to {percent(high)} %"
        error = "-" if without_spread(score) else f"± {percent(score['stderr'])}"
        rows.append([name, f"{percent(score['mean'])} %", error, interval])
        if expected:
            rows[-1].append(with_error(expected[name]) if name in expected else "-")
    kinds = dict.fromkeys(
        {"wilson": "Wilson", "normal": "normal", "t": "t"}[summary["accuracy"][n]["interval"]] for n in names
    )
    head = ["score", "right", "SE", f"95 % interval ({' / '.join(kinds)})", *(["expected"] if expected else [])]
    return table(head, rows)


def scores_legend(summary: Mapping[str, Any]) -> str:
    said = [f"{words}." for words in agreement(summary)]
    if summary["num_groups"]:
        said.append(f"Errors are those of {summary['num_groups']:,} groups of problems, which the data names.")
    if summary["chain"]["expected_correct"]:
        said.append(
            "expected: % right ± SE of all answers that the sampler weighted, by weight: candidates and particles by "
            "theirs, of a chain the answers after all its moves, which until it has converged lie nearer to its start."
        )
    return " ".join(said)


def samples_table(summary: Mapping[str, Any]) -> str:
    """pass@k and maj@k of the headline score, and where its variance comes from; nothing for one sample per problem."""
    if HEADLINE not in summary["pass_at_k"]:
        return ""
    passes, votes = summary["pass_at_k"][HEADLINE], summary["maj_at_k"][HEADLINE]
    rows = [[k, with_error(passes[k]), with_error(votes[k])] for k in votes]
    text = table(["k", f"pass@k ({HEADLINE}, % ± SE)", "maj@k"], rows)
    if (split := summary["variance"].get(HEADLINE)) is None:
        return text
    *with_k, (_, limit) = split["stderr_with"].items()
    errors = ", ".join(f"{percent(error)} with {k}" for k, error in with_k)
    whole = split["questions"] + split["reruns"] or 1.0
    return f"{text}\n\n" + wrapped(
        f"Of the variance of one answer's score {percent(split['questions'] / whole)} % lies between problems and "
        f"{percent(split['reruns'] / whole)} % between answers to the same one. Standard error over new problems: "
        f"{errors} samples each, {percent(limit)} with ever more; over new answers to these problems: "
        f"{percent(split['stderr_reruns'])}."
    )


def deaths(summary: Mapping[str, Any]) -> str:
    if not (num := summary["num_deaths"]):
        return ""
    return f"Workers lost and replaced: {num:,}; what they were answering was asked again."


def answers(summary: Mapping[str, Any]) -> str:
    cut = summary["truncated_rate"]
    truncated = "" if cut is None else f"truncated {percent(cut)} %, "
    text = f"Answers: no answer {percent(summary['no_answer_rate'])} %, {truncated}failed {summary['num_failed']:,}"
    disagreements = summary["num_disagreements"]
    text += f"; the scores disagree on {disagreements:,}." if disagreements else "."
    if summary["truncated_rate"]:
        finished, cut = percent(summary["right_if_finished"]), percent(summary["right_if_truncated"])
        each = f"truncated answers {cut} %"
        if summary["right_if_finished"] is not None:
            each = f"finished answers {finished} %, of truncated ones {cut} %"
        text += f" {HEADLINE.capitalize()} score of {each}."
    if summary["num_rescored"] == 0:
        text += " A later `powersample regrade` has changed no verdict."
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


def model_name(run: Mapping[str, Any]) -> str:
    return "embedded model" if run["model"] == DEMO else PurePath(run["model"] or "unknown model").name


def problems_name(run: Mapping[str, Any]) -> str:
    """What was answered; the task alone would let the embedded problems pass for GSM8K."""
    return "embedded problems" if run["data"] == DEMO else PurePath(run["data"] or "unknown problems").name
