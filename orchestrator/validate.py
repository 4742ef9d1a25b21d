"""`powersample validate`: what `generate` wrote, against what it was given. Runs no model.

What failed, how many rows were wanted and which answers were cut off is read from the run beside the output, if it is
there; without it every row of the input is expected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from evals.config import TaskConfig
from evals.types import UserError
from orchestrator import outputs
from orchestrator.arguments import path_and_options, short
from orchestrator.asked import task_of
from orchestrator.claim import RECORDS, read_run
from orchestrator.outputs import Output
from orchestrator.problems import jsonl_lines
from orchestrator.store import first_records

USAGE = """usage: powersample validate OUT.jsonl --input IN.jsonl

Checks schema, counts, order, duplicates, texts and parameters; exit code 1: a list."""
MAX_CUT = 0.02  # share of answers at the longest length above which there is a warning
SHOWN = 50  # problems that are listed


class Expected(NamedTuple):
    """What the input and the run say of an output."""

    rows: Mapping[int, Any]
    """Row number -> what the input has there."""
    task: TaskConfig
    failed: frozenset[int] = frozenset()
    """Rows that the run lists as failed."""
    cut: int | None = None
    """Answers that ended at the longest length; None where nobody knows."""


def validate(arguments: Sequence[str]) -> int:
    """Print what is wrong, a line each; returns 1 if anything is, else 0. Raises UserError if a file cannot be read."""
    if (asked := path_and_options(arguments or ["--help"], USAGE, ["--input"])) is None:
        return 0
    path, given = asked
    if "--input" not in given:
        raise UserError(f"validate needs the input, too; {short(USAGE)}.")
    expected = expect(path, Path(given["--input"]))
    found, wrong = read(path)
    wrong += [*check_rows(found, expected), *check_all([output for _, output in found], expected)]
    for sentence in wrong[:SHOWN]:
        print(sentence)
    if len(wrong) > SHOWN:
        print(f"and {len(wrong) - SHOWN} more")
    cut = "an unknown number" if expected.cut is None else expected.cut
    print(
        f"{path}: {len(found)} answers to {len(expected.rows)} rows, {len(expected.failed)} rows listed as failed, "
        f"{cut} answers cut off at the longest length; {f'{len(wrong)} things are wrong' if wrong else 'all is well'}"
    )
    if expected.cut and expected.cut > MAX_CUT * len(found):
        print(f"Warning: {expected.cut / max(1, len(found)):.0%} of the answers are cut off: raise --max_new_tokens.")
    return 1 if wrong else 0


def expect(output: Path, source: Path) -> Expected:
    """What should be in `output`, by its input and, where it is there, its run."""
    rows, run = outputs.input_rows(source, "--input"), read_run(outputs.run_of(output))
    if run is None:
        return Expected(rows, TaskConfig(preset="generate"))
    directory = outputs.run_of(output)
    records = first_records(directory / RECORDS).values()
    limit = run["config"].get("limit")
    return Expected(
        {number: row for number, row in rows.items() if limit is None or number < limit},
        task_of(directory, run),
        frozenset(record.problem_id for record in records if record.status == "failed"),
        sum(record.ended == "length" for record in records),
    )


def read(path: Path) -> tuple[list[tuple[str, Output]], list[str]]:
    """The lines that are outputs, each with where it stands, and what is wrong with the others."""
    found, wrong = [], []
    for where, text in jsonl_lines(path, "name the file that generate wrote"):
        try:
            found.append((where, Output.model_validate_json(text)))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            wrong.append(f"{where}: {'.'.join(map(str, first['loc'])) or 'the line'}: {first['msg']}")
    return found, wrong


def check_rows(found: Iterable[tuple[str, Output]], expected: Expected) -> list[str]:
    """What is wrong with single lines."""
    wrong = []
    for where, output in found:
        row = expected.rows.get(output.metadata.example_id)
        if not isinstance(row, Mapping) or outputs.find_question(row, expected.task) not in row:
            wrong.append(f"{where}: the input has no row {output.metadata.example_id} to be answered")
            continue
        wanted = outputs.carried(row, expected.task)
        has = {name: getattr(output, name, None) for name in ("input", "difficulty", "domain")}
        has |= {name: getattr(output.metadata, name) for name in outputs.CARRIED}
        wrong += [
            f"{where}: {name} is not that of row {output.metadata.example_id}"
            for name in has
            if has[name] != wanted[name]
        ]
        if not output.output.strip():
            wrong.append(f"{where}: the output is empty")
    return wrong


def check_all(found: Sequence[Output], expected: Expected) -> list[str]:
    """What is wrong with the lines together: duplicates, order, rows without an answer, different parameters."""
    wrong, ids = [], [output.metadata.example_id for output in found]
    if twice := sorted(i for i, number in Counter(ids).items() if number > 1):
        wrong.append(f"rows that are answered twice: {few(twice)}")
    if any(a > b for a, b in pairwise(ids)):
        wrong.append("the lines are not in the order of the input (generate has not ended)")
    if missing := sorted(expected.rows.keys() - set(ids) - expected.failed):
        wrong.append(f"rows without an answer: {few(missing)}")
    if both := sorted(expected.failed & set(ids)):
        wrong.append(f"rows that are answered and listed as failed: {few(both)}")
    for name in ("teacher_model", "generation_params"):
        if len(kinds := {repr(getattr(output.metadata, name)) for output in found}) > 1:
            wrong.append(f"{name} is not the same in all lines: {', '.join(sorted(kinds)[:3])}")
    return wrong


def few(ids: Sequence[int]) -> str:
    """How many, and the first of them."""
    return f"{len(ids)} ({', '.join(map(str, ids[:10]))}{', …' if len(ids) > 10 else ''})"
