"""Which solved examples stand in front of a question: our own drawing, and the drawings of others replayed exactly.

Ours depends on (seed, row) alone. lm-eval and lighteval draw from one stream in the order in which they see the rows;
what a single process of theirs draws is replayed for any row, however few of them run. Knows no prompt.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from threading import Lock

from evals.rng import Purpose, uniform
from evals.tasks.presets import Draw
from evals.types import Problem, UserError

FEW_SHOT_MOVE = 0xFFFF_FFFF
"""Stands where random keys have a chain's move: no chain gets that far, so examples share no draw with any sampler."""
LM_EVAL_SEED, LIGHTEVAL_SEED = 1234, 42
LIGHTEVAL_ROWS = 1319
"""lighteval shuffles the whole test set before it draws, so its draws are those of that many rows."""
INSPECT_ROWS = (3082, 2184, 5897, 2437, 6330, 819, 3812, 5878, 5302, 5876)
"""numpy.random.default_rng(42).permutation(7473)[:10]: rows of GSM8K's training data."""


def shots(draw: Draw, problem: Problem, train: Sequence[Problem], count: int, seed: int) -> list[Problem]:
    """`count` solved examples in front of `problem`. Raises UserError where `train` cannot give them."""
    if count == 0:
        return []
    match draw:
        case "keyed":
            order = shuffled(train, seed, problem.problem_id)
            found = list(islice((other for other in order if other.question != problem.question), count))
        case "lm_eval":
            found = [train[row] for row in replayed(problem.problem_id, len(train), count)]
        case "lm_eval_self":
            drawn = [train[row] for row in replayed(problem.problem_id, len(train), count + 1)]
            found = [other for other in drawn if other[1:] != problem[1:]][:count]
        case "lighteval":
            found = [train[row] for row in lighteval_rows(len(train), count)[check_row(problem)]]
        case "fixed":
            found = [train[row] for row in INSPECT_ROWS[:count] if row < len(train)]
        case "package":
            found = list(packaged()[:count])
    if len(found) < count:
        raise too_few(count, len(found))
    return found


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
    stream = lm_eval_stream(size, count)
    with stream.lock:
        while len(stream.drawn) <= row:
            stream.drawn.append(stream.random.sample(range(size), count))
    return stream.drawn[row]


class LmEvalStream:
    """The generator that lm-eval keeps for one task, with all that it has drawn so far."""

    def __init__(self) -> None:
        self.random = random.Random(LM_EVAL_SEED)
        self.drawn: list[list[int]] = []
        self.lock = Lock()


@lru_cache(maxsize=8)
def lm_eval_stream(size: int, count: int) -> LmEvalStream:
    if size < count:
        raise too_few(count, size)
    return LmEvalStream()


@lru_cache(maxsize=8)
def lighteval_rows(size: int, count: int) -> dict[int, list[int]]:
    """Row -> the rows of its examples: lighteval shuffles its test rows, then draws in that order."""
    if size < count:
        raise too_few(count, size)
    rng, rows = random.Random(LIGHTEVAL_SEED), list(range(LIGHTEVAL_ROWS))
    rng.shuffle(rows)
    return {row: rng.sample(range(size), count) for row in rows}


def check_row(problem: Problem) -> int:
    """The problem's row. Raises UserError beyond the rows that lighteval shuffled."""
    if problem.problem_id >= LIGHTEVAL_ROWS:
        raise UserError(
            f"Problem {problem.problem_id}: lighteval's examples are drawn for GSM8K's {LIGHTEVAL_ROWS} test rows; use "
            "the preset lmeval-gsm8k-keyed for other data."
        )
    return problem.problem_id


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
