"""The embedded problems: a seeded generator of two- to four-step arithmetic word problems in GSM8K's format.

`row(seed, index)` is a pure function; `scenarios.yaml` holds what the problems are about. A question belongs to the
held-out part or to the training part by its own hash, so the two share no question whatever seeds they are drawn from.
Knows no model, no tokens and no grading.

    python -m evals.demo.problems      # writes problems.jsonl again, byte for byte
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import sha256
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple

from evals.demo.scenarios import draw_values, library, pick
from evals.demo.solutions import Words, solution

FOLDER = Path(__file__).parent
TRAIN_SEED, TEST_SEED, VALIDATION_SEED = 0, 1, 2
TEST_ROWS = 200
HELD_OUT_SHARE = 20
"""One question in this many is held out."""


class Row(NamedTuple):
    """A line of a data set in GSM8K's format."""

    question: str
    answer: str
    """Sentences with equations, one a line, then `#### gold`."""


def row(seed: int, index: int) -> Row:
    """Problem `index` of the stream `seed`, held out or not."""
    lexicon, scenarios = library()
    rng = Random(f"{seed}/{index}")
    scenario = pick(rng, scenarios)
    values = draw_values(rng, scenario)
    words = Words(rng, lexicon)
    question = words.fill(scenario.question, values)
    return Row(question, solution(rng, scenario, values, words))


def held_out(question: str) -> bool:
    """Whether this question may never be trained on: decided by SHA-256 of its text alone."""
    return int.from_bytes(sha256(question.encode()).digest()[:8], "big") % HELD_OUT_SHARE == 0


def training_rows(seed: int = TRAIN_SEED) -> Iterator[Row]:
    """The endless training stream: every row of `seed` that is not held out."""
    return (found for found in map(partial(row, seed), count()) if not held_out(found.question))


def held_out_rows(seed: int, number: int) -> list[Row]:
    """The first `number` held-out rows of a stream, no question twice."""
    rows: dict[str, Row] = {}
    for found in map(partial(row, seed), count()):
        if len(rows) == number:
            break
        if held_out(found.question):
            rows.setdefault(found.question, found)
    return list(rows.values())


def demo_rows() -> list[Row]:
    """The rows of problems.jsonl."""
    return held_out_rows(TEST_SEED, TEST_ROWS)


def validation_rows(number: int) -> list[Row]:
    """Held-out rows none of which is in problems.jsonl: what a training run may look at."""
    taken = {found.question for found in demo_rows()}
    rows = held_out_rows(VALIDATION_SEED, number + TEST_ROWS)
    return [found for found in rows if found.question not in taken][:number]


def as_jsonl(rows: Sequence[Row]) -> str:
    """The rows as the text of a JSONL file."""
    return "".join(json.dumps(found._asdict(), ensure_ascii=False) + "\n" for found in rows)


def main() -> None:
    (FOLDER / "problems.jsonl").write_text(as_jsonl(demo_rows()), encoding="utf-8")


if __name__ == "__main__":
    main()
