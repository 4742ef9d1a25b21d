"""Turns a problem into its prompt's text and an answer's text into grades, for all presets.

Solved examples in front of a question are drawn by (seed, row) alone, or as others draw them: lm-eval and lighteval
from one stream in the order in which they see the rows, which is drawn again for any row, however few of them run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from evals.config import TaskConfig
from evals.grading.grade import FORMATS, readable
from evals.rng import Purpose, RandomKey, uniform
from evals.tasks.presets import PRESETS, Preset, fill
from evals.types import Answer, Chat, Grade, Message, Problem, UserError

FEW_SHOT_MOVE = 0xFFFF_FFFF
"""The move in the random keys of examples: no chain gets that far, so they share no draw with any sampler."""
LM_EVAL_SEED, LIGHTEVAL_SEED = 1234, 42
AT_ONCE = 2048
"""Rows whose draws are made together."""
LIGHTEVAL_ROWS = 1319
"""lighteval shuffles the whole test set before it draws, so its draws are those of that many rows."""
INSPECT_ROWS = (3082, 2184, 5897, 2437, 6330, 819, 3812, 5878, 5302, 5876)
"""numpy.random.default_rng(42).permutation(7473)[:10]: rows of GSM8K's training data."""


class Task(NamedTuple):
    """Turns problems into prompts and texts into grades; `make_task` makes one."""

    config: TaskConfig
    preset: Preset
    seed: int
    """The run's seed, which draws keyed examples."""
    train_problems: tuple[Problem, ...]
    time: datetime
    """When the run began: what a chat template takes for now."""

    def asked(self, problem: Problem) -> str | Chat:
        """The prompt of `prompt` as a tokenizer takes it."""
        prompt = self.prompt(problem)
        if isinstance(prompt, str):
            return prompt
        return Chat(problem.problem_id, prompt, self.config.chat_template_args, self.time)

    def prompt(self, problem: Problem) -> str | tuple[Message, ...]:
        """The prompt's text, or the turns of a chat: a pure function of the preset, the seed and the problem.

        Raises UserError if the training data has too few examples.
        """
        preset = self.preset
        examples = [fill(preset.shot, values(shot)) for shot in self.shots(problem)]
        question = problem.question.strip() if preset.strip else problem.question
        final = fill(self.config.template or preset.form, {**values(problem), "q": question, "question": question})
        if not self.config.chat:
            return preset.joint.join([*examples, final])
        if not preset.shots_in_system:
            return (*problem.turns, {"role": "user", "content": preset.joint.join([*examples, final])})
        system = ({"role": "system", "content": preset.joint.join(examples)},) if examples else ()
        return (*system, *problem.turns, {"role": "user", "content": final})

    def shots(self, problem: Problem) -> list[Problem]:
        """The solved examples in front of `problem`, never the problem itself. Raises UserError for too few of them."""
        train, count = self.train_problems, self.config.num_shots
        if count == 0:
            return []
        match self.preset.draw:
            case "keyed":
                order = shuffled(train, self.seed, problem.problem_id)
                examples = list(islice((other for other in order if other.question != problem.question), count))
            case "lm_eval":
                examples = [train[row] for row in lm_eval_rows(problem.problem_id, len(train), count)]
            case "lm_eval_self":
                drawn = [train[row] for row in lm_eval_rows(problem.problem_id, len(train), count + 1)]
                examples = [other for other in drawn if other[1:] != problem[1:]][:count]
            case "lighteval":
                if problem.problem_id >= LIGHTEVAL_ROWS:
                    raise UserError(
                        f"Problem {problem.problem_id}: lighteval's examples are drawn for GSM8K's {LIGHTEVAL_ROWS} "
                        "test rows; use the preset lmeval-gsm8k-keyed for other data."
                    )
                rows = drawn_rows(LIGHTEVAL_SEED, LIGHTEVAL_ROWS, len(train), count, shuffle=True)
                examples = [train[row] for row in rows[problem.problem_id]]
            case "fixed":
                examples = [train[row] for row in INSPECT_ROWS[:count] if row < len(train)]
            case "package":
                examples = list(packaged()[:count])
        if len(examples) < count:
            raise self._too_few(len(examples))
        return examples

    def _too_few(self, usable: int) -> UserError:
        """The error that only so many solved examples are there for a question."""
        count, rows, draw = self.config.num_shots, len(self.train_problems), self.preset.draw
        preset = f"the preset {self.config.preset}"
        asks = f"task.num_shots asks for {count} solved examples in front of each question"
        if (draw == "fixed" and count > len(INSPECT_ROWS)) or draw == "package":
            most = len(INSPECT_ROWS) if draw == "fixed" else usable
            return UserError(
                f"{asks} but {preset} has {most}; lower it, or choose another preset.", ("task.num_shots",)
            )
        train = self.config.train_data
        if draw == "fixed":
            needs = f"{preset} takes row {max(INSPECT_ROWS[:count]):,} and others of GSM8K's 7,473 training rows"
            has = f"{train} has {rows:,}" if rows else "none are named"
            reason = f"{needs}, and {has}; name all of them, choose another preset"
        elif rows:
            of = "" if usable == rows else f", of which {usable} can stand in front of this one"
            reason = f"the training data {train} has {rows}{of}; name a JSONL file or data set with more of them"
        else:
            reason = "no training data is named; name a JSONL file or data set"
        return UserError(f"{asks} but {reason}, or lower task.num_shots.", ("task.train_data",))

    def grade(self, problem: Problem, answer: Answer) -> dict[str, Grade]:
        """Named scores of an answer; empty for data without answers."""
        return FORMATS[self.config.name].scores(answer, problem, self.preset.cot)

    def vote(self, answer: Answer) -> str | None:
        """What an answer comes to for a majority vote: equal strings for equal ones; None where there is none."""
        text = readable(answer)
        return None if text is None else FORMATS[self.config.name].vote(text)


def make_task(
    config: TaskConfig, seed: int, train_problems: Sequence[Problem] = (), time: datetime | None = None
) -> Task:
    """The task of a configuration; `time`, with its zone, is by default the present one."""
    return Task(config, PRESETS[config.preset], seed, tuple(train_problems), time or datetime.now().astimezone())


def values(problem: Problem) -> dict[str, str]:
    """The values of the names in a form."""
    return {"q": problem.question, "a": problem.solution, "r": problem.reasoning, "n": problem.gold}


def shuffled(problems: Sequence[Problem], seed: int, problem_id: int) -> Iterator[Problem]:
    """The problems in a random order keyed by (seed, problem_id), drawn as they are asked for (lazy Fisher-Yates)."""
    moved: dict[int, int] = {}
    for place in range(len(problems)):
        u = uniform(RandomKey(seed, problem_id, 0, FEW_SHOT_MOVE), place, Purpose.PICK)
        pick = place + int(u * (len(problems) - place))
        yield problems[moved.get(pick, pick)]
        moved[pick] = moved.get(place, place)


def lm_eval_rows(row: int, size: int, count: int) -> list[int]:
    """The rows that a lone process of lm-eval draws for this row, after all rows before it: `count` of `size`."""
    return drawn_rows(LM_EVAL_SEED, -(-(row + 1) // AT_ONCE) * AT_ONCE, size, count, shuffle=False)[row]


@lru_cache(maxsize=16)
def drawn_rows(seed: int, rows: int, size: int, count: int, shuffle: bool) -> dict[int, list[int]]:
    """Row -> the rows of its examples, `count` of `size` (all of fewer), drawn row by row, by lighteval shuffled."""
    rng, order = random.Random(seed), list(range(rows))
    if shuffle:
        rng.shuffle(order)
    return {row: rng.sample(range(size), min(count, size)) for row in order}


@lru_cache(maxsize=1)
def packaged() -> tuple[Problem, ...]:
    """The eight chain-of-thought examples of lm-eval, read from its package, which alone may distribute them."""
    import yaml

    package = find_spec("lm_eval")
    folders = package.submodule_search_locations if package else None
    if not folders:
        raise UserError(
            "The preset lmeval-cot reads its examples from lm-eval, which is not installed here; pip install "
            "'powersample[lm-eval]', or use lmeval-cot-zeroshot."
        )
    text = Path(folders[0], "tasks/gsm8k/gsm8k-cot.yaml").read_text(encoding="utf-8")
    samples = yaml.safe_load(text)["fewshot_config"]["samples"]
    return tuple(Problem(row, sample["question"], sample["target"]) for row, sample in enumerate(samples))
