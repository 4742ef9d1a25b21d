"""A question as a prompt, its answer as grades: one task for all presets. Knows no tokens, files or samplers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from evals.config import TaskConfig
from evals.grading.grade import grade
from evals.grading.numeric import find
from evals.tasks.presets import PRESETS, Preset, fill
from evals.tasks.shots import shots, too_few
from evals.types import Grade, Message, Problem, Task


class Gsm8k(NamedTuple):
    """The task; see `make_task`."""

    config: TaskConfig
    preset: Preset
    seed: int
    train_problems: tuple[Problem, ...]

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self.config.stop

    @property
    def max_prompt_tokens(self) -> int | None:
        return self.config.max_prompt_tokens

    def prompt(self, problem: Problem) -> str | tuple[Message, ...]:
        """The prompt's text, or the turns of a chat. Raises UserError if the training data has too few examples."""
        preset, solved = self.preset, self.shots(problem)
        shown = [fill(preset.shot, values(shot)) for shot in solved]
        question = problem.question.strip() if preset.strip else problem.question
        asked = fill(self.config.template or preset.form, {**values(problem), "q": question, "question": question})
        if not self.config.chat:
            return preset.joint.join([*shown, asked])
        if not preset.shots_in_system:
            return ({"role": "user", "content": preset.joint.join([*shown, asked])},)
        system = ({"role": "system", "content": preset.joint.join(shown)},) if shown else ()
        return (*system, {"role": "user", "content": asked})

    def shots(self, problem: Problem) -> list[Problem]:
        """The solved examples in front of `problem`, never the problem itself."""
        return shots(self.preset.draw, problem, self.train_problems, self.config.num_shots, self.seed)

    def grade(self, problem: Problem, text: str) -> dict[str, Grade]:
        """Named scores of an answer's text, already cut at its stop string; see evals/grading/grade.py.

        None where there are no golds.
        """
        if self.config.name == "open":
            return {}
        return grade(text, problem, cot=self.preset.cot, formulas=self.config.name == "math")

    def vote(self, text: str) -> str | None:
        """The number that the numeric score finds, written as all its equals are: 18 for 18.00, 18% for 18.0 per cent.

        None where there is no number, or none that can be read; for golds in LaTeX a formula votes as it is written.
        """
        found = find(text)
        if found.value is None:
            formula = found.shown if self.config.name == "math" else None
            return formula and re.sub(r"\s", "", formula)
        digits = f"{found.value:f}"
        digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
        return ("0" if not found.value else digits) + ("%" if found.percent else "")


def make_task(config: TaskConfig, seed: int, train_problems: Sequence[Problem] | None = None) -> Task:
    """The task of a configuration. Raises UserError if it wants more solved examples than `train_problems` has."""
    train, preset = tuple(train_problems or ()), PRESETS[config.preset]
    if preset.draw != "package" and len(train) < config.num_shots:
        raise too_few(config.num_shots, len(train))
    return Gsm8k(config, preset, seed, train)


def values(problem: Problem) -> dict[str, str]:
    """What the names in a form stand for."""
    reasoning, _, number = problem.answer.rpartition("####")
    return {"q": problem.question, "a": problem.answer, "r": reasoning.strip(), "n": number.strip()}
