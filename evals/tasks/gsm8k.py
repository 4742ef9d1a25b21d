"""GSM8K: how a problem is put to a language model and how its answer is graded. Knows no tokens, files or samplers.

Preset `Question: {q}\\nAnswer:`, with `num_shots` solved examples of the same form in front, joined by blank lines. The
examples of a problem depend on (seed, problem id) and the training data only, so a prompt is the same on any number of
devices, in any order and under any limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from evals.config import TaskConfig
from evals.grading.numeric import find, numeric
from evals.grading.strict_flexible import flexible, strict
from evals.rng import Purpose, uniform
from evals.types import Grade, Problem, Task, UserError

FEW_SHOT_MOVE = 0xFFFF_FFFF
"""Stands where random keys have a chain's move: no chain gets that far, so examples share no draw with any sampler."""


class Gsm8k(NamedTuple):
    """The task; see `make_task`."""

    stop_strings: tuple[str, ...]
    seed: int
    num_shots: int
    train_problems: tuple[Problem, ...]

    def prompt(self, problem: Problem) -> str:
        """The prompt's text. Raises UserError if the training data has too few other problems."""
        shots = [f"Question: {shot.question}\nAnswer: {shot.answer}" for shot in self.shots(problem)]
        return "\n\n".join([*shots, f"Question: {problem.question}\nAnswer:"])

    def shots(self, problem: Problem) -> list[Problem]:
        """The solved examples in front of `problem`, never the problem itself."""
        order = shuffled(self.train_problems, self.seed, problem.problem_id) if self.num_shots else iter(())
        shots = list(islice((other for other in order if other.question != problem.question), self.num_shots))
        if len(shots) < self.num_shots:
            raise too_few(self.num_shots, len(shots))
        return shots

    def grade(self, problem: Problem, text: str) -> dict[str, Grade]:
        """Scores `strict`, `flexible` and `numeric` of an answer's text, already cut at its stop string."""
        return {
            "strict": strict(text, problem.answer),
            "flexible": flexible(text, problem.answer),
            "numeric": numeric(text, problem),
        }

    def vote(self, text: str) -> str | None:
        """The number that the numeric score finds, written as all its equals are: 18 for 18.00, 18% for 18.0 per cent.

        None where there is no number, or none that can be read.
        """
        found = find(text)
        if found.value is None:
            return None
        digits = f"{found.value:f}"
        digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
        return ("0" if not found.value else digits) + ("%" if found.percent else "")


def make_task(config: TaskConfig, seed: int, train_problems: Sequence[Problem] | None = None) -> Task:
    """The task of a configuration. Raises UserError if it wants more solved examples than `train_problems` has."""
    train = tuple(train_problems or ())
    if len(train) < config.num_shots:
        raise too_few(config.num_shots, len(train))
    return Gsm8k(config.stop, seed, config.num_shots, train)


def shuffled(problems: Sequence[Problem], seed: int, problem_id: int) -> Iterator[Problem]:
    """The problems in an order that (seed, problem_id) decides, as far as they are asked for (Fisher-Yates, lazily)."""
    moved: dict[int, int] = {}
    for place in range(len(problems)):
        u = uniform(seed, (problem_id, 0, FEW_SHOT_MOVE), place, Purpose.PICK)
        pick = place + int(u * (len(problems) - place))
        yield problems[moved.get(pick, pick)]
        moved[pick] = moved.get(place, place)


def too_few(wanted: int, present: int) -> UserError:
    return UserError(
        f"task.num_shots asks for {wanted} solved examples in front of each question but the training data has "
        f"{present}; set task.train_data to a JSONL file or hub name with more of them, or lower task.num_shots."
    )
