"""Compares several runs by paired differences on the problems that they share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from evals.record import Record
from evals.samplers.single import AtTemperature
from evals.statistics import Difference, cluster_sums, holm, mcnemar_exact, paired_difference, sign_flip
from evals.types import UserError
from orchestrator.analysis import accuracy
from orchestrator.analysis.accuracy import PRIMARY_METRIC, by_problem, clusters, groups_of, is_right, question_means
from orchestrator.analysis.load import Run, stored_score
from orchestrator.analysis.summarise import summarise
from orchestrator.analysis.summary import Summary

PLAIN = AtTemperature(1.0), AtTemperature(1.0, top_k=0)
"""Samplers that draw from the model's own distribution: at temperature 1, not truncated."""


class Pair(NamedTuple):
    """The paired difference of a run and another in one score."""

    run: str
    against: str
    difference: Difference
    won: int | None
    """Problems that only `run` has right; None, like `lost`, unless McNemar's test applies."""
    lost: int | None
    p: float
    """Exact McNemar; with several samples per problem, or groups of problems, the sign-flip permutation test."""
    p_holm: float
    """`p` adjusted for the number of pairs in the comparison."""


class Comparison(NamedTuple):
    """Labelled runs, and the pairs of them that are compared on their common problems."""

    runs: list[Run]
    summaries: list[Summary]
    """Of each run on the common problems alone."""
    grader: str
    """The score that is compared."""
    baseline: str
    common: list[int]
    """The problems that all runs have answered."""
    single: bool
    """One sample per problem in every run, and no groups of problems: McNemar's test applies."""
    num_groups: int
    """Groups of common problems, if the data names any; else 0."""
    pairs: list[Pair]
    asked: list[str]
    """What differs between the prompts and limits of the runs, and may cause a difference in scores."""

    @property
    def grown(self) -> list[str]:
        """Labels of the runs to which common problems were added after answers had been seen."""
        seen = {run.label: run.manifest.seen_problems for run in self.runs}
        return [label for label, number in seen.items() if number is not None and self.common[-1] >= number]


class Flip(NamedTuple):
    """A common problem that the runs do not have right equally often."""

    problem_id: int
    gold: str
    """Taken from an answer that was graded right: the runs do not keep the data set's gold."""
    answers: list[list[tuple[str, bool]]]
    """For each run its samples: the extracted answer, and whether it is right."""
    texts: list[list[str]]
    """For each run the texts of its samples; of failed ones the error."""


def compare(runs: Sequence[Run], grader: str = PRIMARY_METRIC) -> Comparison:
    """Compare two or more runs: each with the baseline, and each of power sampling with every other method.

    The baseline is the first run at temperature 1 without truncation, else the first. Raises UserError if they are of
    different tasks or data, share no problem, or lack the score.
    """
    check_alike(runs)
    grader, *_ = (stored_score(run, grader) for run in runs)  # of all, since any may lack it
    runs = labelled(runs)
    means = [question_means(run.records, grader) for run in runs]
    common = sorted(set(means[0]).intersection(*means[1:]))
    if not common:
        raise UserError(
            f"The runs {', '.join(str(run.directory) for run in runs)} have no answered problem in common, so they "
            "cannot be compared; finish them, or report them one by one."
        )
    rows = [[mean[problem_id] for problem_id in common] for mean in means]
    groups = clusters(common, {i: group for run in runs for i, group in groups_of(run.records).items()})
    single = not groups and all(run.summary.num_samples == 1 for run in runs)
    base = next((i for i, run in enumerate(runs) if run.manifest.sampler_settings in PLAIN), 0)
    chosen, labels = chosen_pairs(runs, base), [run.label for run in runs]
    pairs = [pair((labels[i], labels[j]), rows[i], rows[j], single, groups) for i, j in chosen]
    adjusted = holm([row.p for row in pairs])
    pairs = [row._replace(p_holm=p) for row, p in zip(pairs, adjusted, strict=True)]
    differing = asked_differently(runs)
    summaries = [summary_on(run, set(common)) for run in runs]
    return Comparison(runs, summaries, grader, labels[base], common, single, len(set(groups)), pairs, differing)


def summary_on(run: Run, problem_ids: Container[int]) -> Summary:
    """The summary of a run's answers to some of its problems."""
    records = [record for record in run.records if record.problem_id in problem_ids]
    if len(records) == len(run.records):
        return run.summary
    return summarise(records, run.telemetry, run.manifest)


def flips(comparison: Comparison) -> list[Flip]:
    """The problems that the runs do not have right equally often: largest gaps first, then as in the data."""
    samples = [by_problem(run.records) for run in comparison.runs]
    ranked = []
    for problem_id in comparison.common:
        answers = [[verdict(record, comparison.grader) for record in run[problem_id]] for run in samples]
        shares = [sum(is_right for _, is_right in one) / len(one) for one in answers]
        if gap := max(shares) - min(shares):
            gold = next(answer for one in answers for answer, is_right in one if is_right)
            texts = [[record.text or record.error or "" for record in run[problem_id]] for run in samples]
            ranked.append((-gap, problem_id, Flip(problem_id, gold, answers, texts)))
    return [flip for _, _, flip in sorted(ranked)]


def verdict(record: Record, grader: str) -> tuple[str, bool]:
    """The answer that a grader extracted, or why there is none, and whether it is right."""
    if record.status == "failed":
        return "failed", False
    answer = accuracy.extracted(record, grader)
    return "no answer" if answer is None else answer, is_right(record, grader)


def chosen_pairs(runs: Sequence[Run], base: int) -> list[tuple[int, int]]:
    """The pairs to compare, as indices of runs; not all there are, since every pair makes Holm's p values larger."""
    power = [run.manifest.kind == "power" for run in runs]
    rest = [i for i in range(len(runs)) if i != base]
    return [(i, base) for i in rest] + [(i, j) for i in rest if power[i] for j in rest if not power[j]]


def pair(
    labels: tuple[str, str], a: Sequence[float], b: Sequence[float], single: bool, groups: Sequence[str] = ()
) -> Pair:
    """Compares the question means `a` and `b` of two runs; `single`: all are 0 or 1. `p_holm` is set to p."""
    difference, gaps = paired_difference(a, b, groups), np.subtract(a, b)
    if not single:
        p = sign_flip(cluster_sums(gaps, groups))
        return Pair(*labels, difference, None, None, p, p)
    won, lost = int(np.sum(gaps > 0)), int(np.sum(gaps < 0))
    p = mcnemar_exact(won, lost)
    return Pair(*labels, difference, won, lost, p, p)


def check_alike(runs: Sequence[Run]) -> None:
    """Raises UserError unless the runs are of one data set and one task, so that a problem id has one problem and one
    gold."""
    data = {run.manifest.data_sha256: run.directory for run in runs}
    rows = [run.manifest.rows_sha256 for run in runs if run.manifest.rows_sha256]
    if len(rows) == len(runs) and all(max(rows, key=len).startswith(one) for one in rows):
        data = {}  # data that has grown: what they share is the same
    tasks = {run.manifest.task: run.directory for run in runs}
    for places, what in ((data, "used different data"), (tasks, "are of different tasks")):
        if len(places) > 1:
            raise UserError(
                f"The runs {' and '.join(map(str, places.values()))} {what}, so their problems cannot be paired; "
                "report them one by one."
            )
    for name in dict.fromkeys(name for run in runs for name in run.summary.versions):
        versions = {run.directory: run.summary.versions[name] for run in runs if name in run.summary.versions}
        if older := [place for place, version in versions.items() if version < max(versions.values())]:
            raise UserError(
                f"The runs {' and '.join(map(str, versions))} were graded by different versions of the score {name} "
                f"({' and '.join(map(str, versions.values()))}), which may decide differently; "
                f"{' and '.join(f'`powersample regrade {place}`' for place in older)} first."
            )


def asked_differently(runs: Sequence[Run]) -> list[str]:
    """What differs between the prompts and limits of the runs, in words."""
    manifests = [run.manifest for run in runs]
    alike = len({run.num_problems for run in manifests}) == 1  # the hash is over all prompts of a run
    asked = [
        (run.preset, run.num_shots, run.max_new_tokens, str(run.stop), alike and run.prompts_sha256)
        for run in manifests
    ]
    names = ("preset", "solved examples", "token limit", "stop strings", "prompts")
    differing = [name for name, values in zip(names, zip(*asked, strict=True), strict=True) if len(set(values)) > 1]
    versions = defaultdict[str | None, set[str]](set)
    for run in manifests:
        versions[run.preset] |= {run.preset_version} if run.preset_version else set()  # older runs do not say it
    return differing + [
        f"versions {' and '.join(sorted(known))} of the preset {preset}"
        for preset, known in versions.items()
        if len(known) > 1
    ]


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs labelled by method; equal ones also by directory name, or by path if the names are equal, too.

    Raises UserError if a run is given twice.
    """
    if len({run.directory.resolve() for run in runs}) < len(runs):
        raise UserError("A run is named twice, and would be compared with itself; name each run once.")
    methods = [run.manifest.method for run in runs]
    places = [("", f", {run.directory.name}", f", {run.directory}") for run in runs]
    forms = [[method + place for place in each] for method, each in zip(methods, places, strict=True)]
    counts = Counter(form for one in forms for form in set(one))
    names = [next((form for form in one if counts[form] == 1), one[-1]) for one in forms]
    return [run._replace(label=name) for run, name in zip(runs, names, strict=True)]


def as_json(comparison: Comparison, limit: int | None) -> dict[str, Any]:
    """A comparison as JSON values, for scripts; what cannot be computed is None. `limit`: the most flipped problems to
    list, None for all."""
    labels = [run.label for run in comparison.runs]
    return {
        "grader": comparison.grader,
        "reference": comparison.baseline,
        "num_common": len(comparison.common),
        "num_groups": comparison.num_groups or None,
        "test": "mcnemar" if comparison.single else "sign_flip",
        "asked_differently": comparison.asked,
        "problems_added_after_results": comparison.grown,
        "runs": [
            {"label": run.label, "directory": str(run.directory), "fingerprint": run.manifest.fingerprint}
            | {"accuracy": asdict(summary.accuracy[comparison.grader]), "warnings": run.summary.warnings}
            for run, summary in zip(comparison.runs, comparison.summaries, strict=True)
        ],
        "pairs": [
            {
                **pair._asdict(),
                "difference": pair.difference.mean,
                **{name: accuracy.none_if_nan(getattr(pair.difference, name)) for name in ("stderr", "mde", "n")},
                "ci95": None if pair.difference.n < 2 else pair.difference[2:4],
            }
            for pair in comparison.pairs
        ],
        "flips": [
            {"problem_id": flip.problem_id, "gold": flip.gold, "answers": dict(zip(labels, flip.answers, strict=True))}
            | {"texts": dict(zip(labels, flip.texts, strict=True))}
            for flip in flips(comparison)[:limit]
        ],
    }
