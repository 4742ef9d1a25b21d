"""A question as a prompt, its answer as grades: one task for all presets. Knows no tokens, files or samplers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from evals.config import TaskConfig
from evals.grading.grade import FORMATS
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
        """Named scores of an answer's text, already cut at its stop string; none where there are no golds."""
        return FORMATS[self.config.name].scores(text, problem, self.preset.cot)

    def vote(self, text: str) -> str | None:
        """The final answer of such a text, as the format of the data has it."""
        return FORMATS[self.config.name].vote(text)


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
