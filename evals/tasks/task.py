"""A question as a prompt, its answer as grades: one task for all presets. Knows no tokens and no samplers.

Solved examples in front of a question are drawn by (seed, row) alone, or as others draw them: lm-eval and lighteval
from one stream in the order in which they see the rows, which is replayed for any row, however few of them run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from evals.config import TaskConfig
from evals.grading.grade import FORMATS
from evals.rng import Purpose, uniform
from evals.tasks.presets import PRESETS, Preset, fill
from evals.types import Grade, Message, Problem, UserError

FEW_SHOT_MOVE = 0xFFFF_FFFF
"""Stands where random keys have a chain's move: no chain gets that far, so examples share no draw with any sampler."""
LM_EVAL_SEED, LIGHTEVAL_SEED = 1234, 42
AT_ONCE = 2048
"""Rows whose draws are replayed together."""
LIGHTEVAL_ROWS = 1319
"""lighteval shuffles the whole test set before it draws, so its draws are those of that many rows."""
INSPECT_ROWS = (3082, 2184, 5897, 2437, 6330, 819, 3812, 5878, 5302, 5876)
"""numpy.random.default_rng(42).permutation(7473)[:10]: rows of GSM8K's training data."""


class Task(NamedTuple):
    """Turns problems into prompts and texts into grades; see `make_task`."""

    config: TaskConfig
    preset: Preset
    seed: int
    """The run's."""
    train_problems: tuple[Problem, ...]

    def prompt(self, problem: Problem) -> str | tuple[Message, ...]:
        """The prompt's text, or the turns of a chat: a pure function of the preset, the seed and the problem.

        Raises UserError if the training data has too few examples.
        """
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
        """The solved examples in front of `problem`, never the problem itself. Raises UserError for too few of them."""
        train, count = self.train_problems, self.config.num_shots
        if count == 0:
            return []
        match self.preset.draw:
            case "keyed":
                order = shuffled(train, self.seed, problem.problem_id)
                found = list(islice((other for other in order if other.question != problem.question), count))
            case "lm_eval":
                found = [train[row] for row in replayed(problem.problem_id, len(train), count)]
            case "lm_eval_self":
                drawn = [train[row] for row in replayed(problem.problem_id, len(train), count + 1)]
                found = [other for other in drawn if other[1:] != problem[1:]][:count]
            case "lighteval":
                if problem.problem_id >= LIGHTEVAL_ROWS:
                    raise UserError(
                        f"Problem {problem.problem_id}: lighteval's examples are drawn for GSM8K's {LIGHTEVAL_ROWS} "
                        "test rows; use the preset lmeval-gsm8k-keyed for other data."
                    )
                rows = drawn_rows(LIGHTEVAL_SEED, LIGHTEVAL_ROWS, len(train), count, shuffle=True)
                found = [train[row] for row in rows[problem.problem_id]]
            case "fixed":
                found = [train[row] for row in INSPECT_ROWS[:count] if row < len(train)]
            case "package":
                found = list(packaged()[:count])
        if len(found) < count:
            raise too_few(count, len(found))
        return found

    def grade(self, problem: Problem, text: str) -> dict[str, Grade]:
        """Named scores of an answer's text, already cut at its earliest stop string; none where there are no golds."""
        return FORMATS[self.config.name].scores(text, problem, self.preset.cot)

    def vote(self, text: str) -> str | None:
        """The final answer of such a text, equal strings for equal answers; None where there is none."""
        return FORMATS[self.config.name].vote(text)


def make_task(config: TaskConfig, seed: int, train_problems: Sequence[Problem] = ()) -> Task:
    """The task of a configuration. Raises UserError if it wants more solved examples than `train_problems` has."""
    preset = PRESETS[config.preset]
    if preset.draw != "package" and len(train_problems) < config.num_shots:
        raise too_few(config.num_shots, len(train_problems))
    return Task(config, preset, seed, tuple(train_problems))


def values(problem: Problem) -> dict[str, str]:
    """What the names in a form stand for."""
    reasoning, _, number = problem.answer.rpartition("####")
    return {"q": problem.question, "a": problem.answer, "r": reasoning.strip(), "n": number.strip()}


def shuffled(problems: Sequence[Problem], seed: int, problem_id: int) -> Iterator[Problem]:
    """The problems in an order that (seed, problem_id) decides, as far as they are asked for (Fisher-Yates, lazily)."""
    moved: dict[int, int] = {}
    for place in range(len(problems)):
        u = uniform(seed, (problem_id, 0, FEW_SHOT_MOVE), place, Purpose.PICK)
        pick = place + int(u * (len(problems) - place))
        yield problems[moved.get(pick, pick)]
        moved[pick] = moved.get(place, place)


def replayed(row: int, size: int, count: int) -> list[int]:
    """What a lone process of lm-eval draws for this row, after all rows before it: `count` of `size` rows."""
    return drawn_rows(LM_EVAL_SEED, -(-(row + 1) // AT_ONCE) * AT_ONCE, size, count, shuffle=False)[row]


@lru_cache(maxsize=16)
def drawn_rows(seed: int, rows: int, size: int, count: int, shuffle: bool) -> dict[int, list[int]]:
    """Row -> the rows of its examples, `count` of `size`, drawn row by row; lighteval shuffles its rows before that."""
    if size < count:
        raise too_few(count, size)
    rng, order = random.Random(seed), list(range(rows))
    if shuffle:
        rng.shuffle(order)
    return {row: rng.sample(range(size), count) for row in order}


@lru_cache(maxsize=1)
def packaged() -> tuple[Problem, ...]:
    """The eight chain-of-thought examples of lm-eval, read from its package, which alone may distribute them."""
    import yaml

    package = find_spec("lm_eval")
    places = package.submodule_search_locations if package else None
    if not places:
        raise UserError(
            "The preset lmeval-cot reads its examples from lm-eval, which is not installed here; pip install "
            "lm-eval==0.4.13, or use lmeval-cot-zeroshot."
        )
    text = Path(places[0], "tasks/gsm8k/gsm8k-cot.yaml").read_text(encoding="utf-8")
    samples = yaml.safe_load(text)["fewshot_config"]["samples"]
    return tuple(Problem(row, sample["question"], sample["target"]) for row, sample in enumerate(samples))


def too_few(wanted: int, present: int) -> UserError:
    return UserError(
        f"task.num_shots asks for {wanted} solved examples in front of each question but the training data has "
        f"{present}; set task.train_data to a JSONL file or hub name with more of them, or lower task.num_shots."
    )
