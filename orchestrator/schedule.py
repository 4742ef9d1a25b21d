"""What is expected to take long should not begin last: how many tokens an answer will cost. Pure; knows no worker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from evals.types import Record

MIN_RECORDS = 32  # below, a fitted line says less than the rule that long questions take long


class Line(NamedTuple):
    """y = intercept + slope · x."""

    intercept: float
    slope: float

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x


def fit(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """The line of least squares; the mean of `ys` where all `xs` are equal. Needs at least one point."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    slope = covariance / spread if spread else 0.0
    return Line(mean_y - slope * mean_x, slope)


def forecast(lengths: Mapping[int, int], records: Iterable[Record]) -> Callable[[int], float]:
    """problem_id -> what an answer to it will cost, in tokens once there are enough records, before that in order only.

    `lengths` are the lengths of the questions. A problem that has answers costs their mean; of others a line through
    (length of the question, tokens generated for an answer) tells.
    """
    costs: defaultdict[int, list[int]] = defaultdict(list)
    for record in records:
        if record.tokens.get("generated") and record.problem_id in lengths:
            costs[record.problem_id].append(record.tokens["generated"])
    points = [(lengths[problem_id], cost) for problem_id, each in costs.items() for cost in each]
    if len(points) < MIN_RECORDS:
        return lambda problem_id: lengths[problem_id]
    line = fit(*zip(*points, strict=True))
    means = {problem_id: sum(each) / len(each) for problem_id, each in costs.items()}
    return lambda problem_id: means.get(problem_id, line.at(lengths[problem_id]))
