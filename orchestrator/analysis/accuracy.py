"""Scores computed from records: question means, accuracies with their errors, pass@k and maj@k.

A failed record has no scores and counts as wrong everywhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from math import inf, isnan

from evals.grading.lm_eval import normalised
from evals.record import Record
from evals.statistics import maj_at_k, mean_and_stderr, pass_at_k, quantile95, variance_split, wilson
from orchestrator.analysis.summary import Estimate, Variance

GRADERS = ("strict", "flexible", "numeric")
PRIMARY_METRIC = "numeric"
"""The score that comparisons and the progress bar show."""
ByGraderAndK = dict[str, dict[str, Estimate]]
ROUNDING = 1e-12
"""A standard error below this is rounding and counts as 0."""


def is_right(record: Record, grader: str) -> bool:
    return grader in record.scores and record.scores[grader].correct


def extracted(record: Record, grader: str) -> str | None:
    """The answer that the grader found in the record's text; None if there was none, or no such grader."""
    return record.scores[grader].answer if grader in record.scores else None


def graders(records: Iterable[Record]) -> list[str]:
    """Names of the scores that the records have, the usual ones first; all the usual ones if they have none."""
    names = dict.fromkeys(name for record in records for name in record.scores)
    return [name for name in GRADERS if name in names or not names] + [name for name in names if name not in GRADERS]


def by_problem(records: Iterable[Record]) -> dict[int, list[Record]]:
    """Problem id -> its records, ids in order."""
    samples: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        samples[record.problem_id].append(record)
    return dict(sorted(samples.items()))


def question_means(records: Iterable[Record], grader: str) -> dict[int, float]:
    """Problem id -> share of its recorded samples that are right."""
    return {
        problem_id: sum(is_right(record, grader) for record in samples) / len(samples)
        for problem_id, samples in by_problem(records).items()
    }


def groups_of(records: Iterable[Record]) -> dict[int, str]:
    """Problem id -> the group of its problem, of those that have one."""
    return {record.problem_id: record.group for record in records if record.group is not None}


def clusters(problem_ids: Iterable[int], groups: Mapping[int, str]) -> list[str]:
    """The group of each problem, or one of its own; empty if no problem has a group."""
    return [groups.get(i, f"problem {i}") for i in problem_ids] if groups else []


def estimate(values: Mapping[int, float], binary: bool = False, groups: Mapping[int, str] | None = None) -> Estimate:
    """Mean of problems' values in [0, 1] by id, its standard error and its 95 % interval.

    The interval is Wilson's if `binary` (one sample per problem), Student's over groups if the problems have `groups`,
    else normal. Equal values have no spread, but the next question may differ: the interval then allows for the share
    of other questions that Wilson's does at 0 of n, whatever their value. For all 0 or all 1 that is Wilson's.
    """
    names = clusters(values, groups or {})
    mean, stderr = map(none_if_nan, mean_and_stderr(list(values.values()), names))
    kind, interval = "t" if names else "normal", None
    if binary and not names:
        kind, interval = "wilson", wilson(round(sum(values.values())), len(values)) if values else None
    elif mean is not None and stderr is not None and stderr < ROUNDING:
        other = wilson(0, len(set(names)) or len(values))[1]
        kind, interval = "wilson", ((1 - other) * mean, (1 - other) * mean + other)
    elif mean is not None and stderr is not None:
        half = quantile95(names) * stderr
        interval = max(0.0, mean - half), min(1.0, mean + half)
    return Estimate(mean, stderr, interval, kind, len(values))


def expected_correctness(records: Sequence[Record]) -> dict[str, Estimate]:
    """grader -> estimate of the mean correctness of the answers that samplers weighted, as far as they report it.

    It estimates the same as the accuracy with less variance (Rao-Blackwell).
    """
    estimates, groups = {}, groups_of(records)
    for name in dict.fromkeys(name for record in records for name in record.chain.expected_correct or ()):
        values: dict[int, list[float]] = defaultdict(list)
        for record in records:
            share = (record.chain.expected_correct or {}).get(name, 0.0 if record.status == "failed" else None)
            if share is not None:
                values[record.problem_id].append(share)
        estimates[name] = estimate({i: sum(values[i]) / len(values[i]) for i in sorted(values)}, groups=groups)
    return estimates


def at_k(records: Sequence[Record], num_samples: int) -> tuple[ByGraderAndK, ByGraderAndK, dict[str, Variance]]:
    """pass@k and maj@k, both grader -> k -> estimate, and grader -> variance; all empty for one sample per problem.

    pass@k for every k up to `num_samples`, maj@k for k = 1, 2, 4, … and that. Errors are of question values, hence
    clustered by problem. A problem with fewer than k recorded samples is left out. No variance where problems have
    groups.
    """
    groups = groups_of(records)
    pass_at, maj_at, variance = {}, {}, {}
    for grader in graders(records) if num_samples > 1 else []:
        tallies = {problem_id: tally(samples, grader) for problem_id, samples in by_problem(records).items()}
        passes = {i: pass_at_k(right, right + sum(wrong) + silent) for i, (right, wrong, silent) in tallies.items()}
        pass_at[grader] = {
            str(k): estimate({i: one[k - 1] for i, one in passes.items() if len(one) >= k}, groups=groups)
            for k in range(1, num_samples + 1)
        }
        maj_at[grader] = {
            str(k): estimate(
                {i: maj_at_k(*counts, k, key=(i, k)) for i, counts in tallies.items() if len(passes[i]) >= k},
                groups=groups,
            )
            for k in [*(1 << i for i in range((num_samples - 1).bit_length())), num_samples]
        }
        split = variance_split([counts[0] for counts in tallies.values()], list(map(len, passes.values())))
        if split and not groups:
            errors = {str(k): split.stderr(k) for k in (1, num_samples, 2 * num_samples, inf)}
            variance[grader] = Variance(*split, errors)
    return pass_at, maj_at, variance


def tally(samples: Iterable[Record], grader: str) -> tuple[int, list[int], int]:
    """Votes of a problem's samples: how many are right, how many give each wrong answer, how many give none."""
    num_right, silent, wrong = 0, 0, Counter[str]()
    for record in samples:
        answer = extracted(record, grader)
        if is_right(record, grader):
            num_right += 1
        elif answer is None:
            silent += 1
        else:
            wrong[normalised_answer(answer, grader)] += 1
    return num_right, sorted(wrong.values()), silent


def normalised_answer(answer: str, grader: str) -> str:
    """An answer in the form in which equal answers are equal strings: 18.0 votes for 18."""
    if grader != PRIMARY_METRIC:
        return normalised(answer)
    try:
        return str(Decimal(answer).normalize())
    except InvalidOperation:
        return answer


def none_if_nan(value: float) -> float | None:
    """The value, or None for NaN, which JSON cannot hold."""
    return None if isnan(value) else value
